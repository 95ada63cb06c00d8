//! What a discovery leaves behind: the tags of the agents, in their records (spec/api.md 5.5).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::Value;

use super::ask::HostResult;
use super::objects::is_ok;
use crate::core::logging::Action;
use crate::core::registry::{AgentRecord, Registry};

/// Most bytes of tags, names and values, that are taken from one agent. A record that an agent could make as long as it likes would be one that
/// nobody reads any more.
const MAX_TAGS: usize = 64 * 1024;

/// Writes the tags that were reported into the records where they differ; without any, nothing is locked or written. What fails is in the log.
/// Works on files. Returns how many records were changed.
pub fn learn_tags(registry: &Registry, results: &[Arc<HostResult>]) -> usize {
    let mut new: HashMap<_, BTreeMap<String, String>> = HashMap::new();
    for result in results.iter().filter(|result| is_ok(result)) {
        let Ok(answer) = &result.answer else { continue };
        let Some(Value::Object(tags)) = answer.body.get("tags") else {
            continue;
        };
        let tags = AgentRecord::tags_of(tags.clone());
        let size: usize = tags
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        if size > MAX_TAGS {
            log_failure(format!(
                "the agent '{}' reports {size} bytes of tags, at most {MAX_TAGS} are kept: see [tags] in its configuration",
                result.host()
            ));
        } else if tags != result.target.record.tags {
            new.insert(result.target.name.clone(), tags);
        }
    }
    let update = |record: &mut AgentRecord| {
        if let Some(tags) = new.get(&record.name) {
            record.tags.clone_from(tags);
        }
    };
    registry
        .update_many(new.keys().cloned(), update)
        .unwrap_or_else(|error| {
            log_failure(error.to_string());
            0
        })
}

fn log_failure(error: String) {
    Action::new("tags-store-fail")
        .field("ERROR", error)
        .warning();
}
