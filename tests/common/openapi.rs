//! Checks answers against an OpenAPI document: is this status described for this operation, with this type of content, and does the body fit
//! its schema?
//!
//! It knows the part of JSON Schema that our document uses; a keyword that it does not know is a failure, because a check that leaves something
//! out could not fail. It is stricter than JSON Schema in one thing: an object with `properties` that does not say `additionalProperties` may
//! have no others. So a member that nobody has described is found.

use serde_json::{Map, Value};

/// Checks an answer of the server whose own document this is.
///
/// `path` as it was asked for. `content_type` and `body` as they came; those of an answer to HEAD are not looked at.
///
/// # Errors
/// What is not as described.
pub fn check_answer(
    document: &Value,
    method: &str,
    path: &str,
    status: u16,
    content_type: Option<&str>,
    body: &[u8],
) -> Result<(), String> {
    let path = path.split('?').next().unwrap_or_default();
    let responses = responses(document, method, path)?;
    let told = format!("{method} {path}: {status}");
    let Some(response) = responses.get(&status.to_string()) else {
        return Err(format!("{told} is not described"));
    };
    let response = follow(document, response)?;
    if method == "HEAD" {
        return Ok(());
    }
    let Some(content) = response.get("content").and_then(Value::as_object) else {
        return match body.len() {
            0 => Ok(()),
            some => Err(format!(
                "{told} has no body by the document, but {some} bytes came"
            )),
        };
    };
    let kind = content_type.ok_or_else(|| format!("{told} has no content type"))?;
    let (_, media) = content
        .iter()
        .find(|(described, _)| essence(described) == essence(kind))
        .ok_or_else(|| format!("{told}: the type {kind:?} is not described"))?;
    let text = std::str::from_utf8(body).map_err(|e| format!("{told}: {e}"))?;
    let value = if essence(kind) == "application/json" {
        serde_json::from_str(text).map_err(|e| format!("{told}: no JSON: {e}: {text}"))?
    } else {
        Value::from(text)
    };
    validate(document, &media["schema"], &value).map_err(|why| format!("{told}: {why}: {text}"))
}

/// Answers that are described for a method of a path. What the document does not have, only the gate answers: then the answers are those of any
/// operation, with 404 for a path.
fn responses(document: &Value, method: &str, path: &str) -> Result<Map<String, Value>, String> {
    let paths = document["paths"]
        .as_object()
        .ok_or("the document has no paths")?;
    let known = |item: &Value, method: &str| -> Option<Map<String, Value>> {
        let responses = &item.get(method.to_ascii_lowercase())?["responses"];
        responses.as_object().cloned()
    };
    let exact = paths.get(path);
    let item = exact.or_else(|| paths.iter().find(|(t, _)| matches(t, path)).map(|(_, i)| i));
    if let Some(item) = item {
        let asked = if method == "HEAD" { "GET" } else { method };
        if let Some(responses) = known(item, asked) {
            return Ok(responses);
        }
    }
    let gate = paths.get("/health").and_then(|item| known(item, "GET"));
    let mut gate = gate.ok_or("the document does not describe GET /health")?;
    gate.retain(|code, _| !code.starts_with('2'));
    match item {
        None => {
            gate.remove("405");
            let absent = serde_json::json!({"$ref": "#/components/responses/NotFound"});
            gate.insert("404".to_owned(), absent);
        }
        Some(_) if method == "OPTIONS" => {
            gate.remove("405");
            gate.insert(
                "204".to_owned(),
                serde_json::json!({"description": "Allow"}),
            );
        }
        Some(_) => {}
    }
    Ok(gate)
}

/// The only parameters are ids of runs.
fn matches(template: &str, path: &str) -> bool {
    let Some((prefix, suffix)) = template.split_once("{reqid}") else {
        return false;
    };
    let inner = path
        .strip_prefix(prefix)
        .and_then(|p| p.strip_suffix(suffix));
    inner.is_some_and(|id| fits("^[a-f0-9]+$", id) == Ok(true))
}

fn essence(kind: &str) -> String {
    let kind = kind.split(';').next().unwrap_or_default();
    kind.trim().to_ascii_lowercase()
}

/// The thing itself, or what its `$ref` names.
fn follow<'a>(document: &'a Value, value: &'a Value) -> Result<&'a Value, String> {
    let Some(target) = value.get("$ref").and_then(Value::as_str) else {
        return Ok(value);
    };
    let pointer = target
        .strip_prefix('#')
        .ok_or_else(|| format!("{target} is not in this document"))?;
    document
        .pointer(pointer)
        .ok_or_else(|| format!("{target} leads nowhere"))
}

/// # Errors
/// The first thing that does not fit, with its place.
pub fn validate(document: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    at(document, schema, value, "$")
}

fn at(document: &Value, schema: &Value, value: &Value, place: &str) -> Result<(), String> {
    let schema = follow(document, schema)?;
    let Some(keywords) = schema.as_object() else {
        return Err(format!("{place}: its schema is no object: {schema}"));
    };
    let wrong = |what: String| Err(format!("{place}: {what}"));
    let length = value.as_array().map(Vec::len);
    for (keyword, wanted) in keywords {
        match keyword.as_str() {
            "description" | "default" | "format" => {}
            "type" => {
                if !words(wanted).any(|name| is(name, value)) {
                    return wrong(format!("{value} is not of type {wanted}"));
                }
            }
            "const" => {
                if value != wanted {
                    return wrong(format!("{value} is not {wanted}"));
                }
            }
            "enum" => {
                let choices = wanted.as_array().ok_or("enum is no array")?;
                if !choices.contains(value) {
                    return wrong(format!("{value} is none of {wanted}"));
                }
            }
            "pattern" => {
                let pattern = wanted.as_str().ok_or("pattern is no text")?;
                if let Some(text) = value.as_str()
                    && !fits(pattern, text)?
                {
                    return wrong(format!("{text:?} is not of the form {pattern}"));
                }
            }
            "minimum" | "maximum" => {
                let bound = wanted.as_f64().ok_or("a bound is no number")?;
                if let Some(number) = value.as_f64()
                    && (keyword == "minimum" && number < bound
                        || keyword == "maximum" && number > bound)
                {
                    return wrong(format!("{number} is beyond the {keyword} {bound}"));
                }
            }
            "minItems" | "maxItems" => {
                let bound = wanted.as_u64().ok_or("a bound is no number")?;
                if let Some(length) = length
                    && (keyword == "minItems" && (length as u64) < bound
                        || keyword == "maxItems" && length as u64 > bound)
                {
                    return wrong(format!("{length} items are beyond {keyword} {bound}"));
                }
            }
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    at(document, wanted, item, &format!("{place}[{index}]"))?;
                }
            }
            "required" => {
                if let Some(members) = value.as_object()
                    && let Some(missing) = words(wanted).find(|name| !members.contains_key(*name))
                {
                    return wrong(format!("{missing:?} is missing"));
                }
            }
            "properties" | "additionalProperties" => {}
            "oneOf" | "anyOf" => {
                let variants = wanted.as_array().ok_or("variants are no array")?;
                let tried: Vec<_> = variants
                    .iter()
                    .map(|v| at(document, v, value, place))
                    .collect();
                let fitting = tried.iter().filter(|result| result.is_ok()).count();
                if fitting == 0 || keyword == "oneOf" && fitting > 1 {
                    return wrong(format!("fits {fitting} of {keyword}: {tried:?}"));
                }
            }
            other => {
                return wrong(format!(
                    "the keyword {other:?} of its schema is not known here"
                ));
            }
        }
    }
    match value {
        Value::Object(members) => of_members(document, keywords, members, place),
        _ => Ok(()),
    }
}

fn of_members(
    document: &Value,
    keywords: &Map<String, Value>,
    members: &Map<String, Value>,
    place: &str,
) -> Result<(), String> {
    let described = keywords.get("properties").and_then(Value::as_object);
    let more = keywords.get("additionalProperties");
    for (name, member) in members {
        let place = format!("{place}.{name}");
        match (described.and_then(|d| d.get(name)), more) {
            (Some(schema), _) => at(document, schema, member, &place)?,
            (None, Some(Value::Bool(true))) => {}
            (None, Some(schema @ Value::Object(_))) => at(document, schema, member, &place)?,
            (None, None) if described.is_none() => {}
            (None, _) => return Err(format!("{place} is not described")),
        }
    }
    Ok(())
}

/// One word, or a list of them.
fn words(value: &Value) -> impl Iterator<Item = &str> {
    let list = value.as_array().map(Vec::as_slice);
    list.unwrap_or(std::slice::from_ref(value))
        .iter()
        .filter_map(Value::as_str)
}

fn is(name: &str, value: &Value) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "number" => value.is_number(),
        "integer" => {
            value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0)
        }
        _ => false,
    }
}

/// A character or a class of them, and how often it comes: once, or at least once.
struct Atom {
    ranges: Vec<(char, char)>,
    more: bool,
}

/// Whether a text is of the form `pattern`: characters and classes, each perhaps with `+`, between `^` and `$`.
///
/// # Errors
/// The pattern is another kind of expression.
pub fn fits(pattern: &str, text: &str) -> Result<bool, String> {
    let odd = || format!("the pattern {pattern} is not of a kind that is known here");
    let inner = pattern.strip_prefix('^').and_then(|p| p.strip_suffix('$'));
    let mut rest = inner.ok_or_else(odd)?.chars().peekable();
    let mut atoms = Vec::new();
    while let Some(first) = rest.next() {
        let ranges = match first {
            '[' => {
                let mut ranges: Vec<(char, char)> = Vec::new();
                loop {
                    match (rest.next().ok_or_else(odd)?, rest.peek()) {
                        (']', _) => break,
                        ('-', Some(&end)) if end != ']' && !ranges.is_empty() => {
                            ranges.last_mut().ok_or_else(odd)?.1 = end;
                            rest.next();
                        }
                        ('^' | '\\', _) => return Err(odd()),
                        (c, _) => ranges.push((c, c)),
                    }
                }
                ranges
            }
            '\\' | '(' | ')' | '|' | '.' | '*' | '?' | '{' | '+' | '^' | '$' => return Err(odd()),
            c => vec![(c, c)],
        };
        let more = rest.next_if_eq(&'+').is_some();
        atoms.push(Atom { ranges, more });
    }
    let text: Vec<char> = text.chars().collect();
    Ok(atoms_fit(&atoms, &text))
}

fn atoms_fit(atoms: &[Atom], text: &[char]) -> bool {
    let Some((atom, rest)) = atoms.split_first() else {
        return text.is_empty();
    };
    let fitting = text
        .iter()
        .take_while(|&&c| {
            atom.ranges
                .iter()
                .any(|&(from, to)| (from..=to).contains(&c))
        })
        .count();
    let most = if atom.more { fitting } else { fitting.min(1) };
    (1..=most).any(|taken| atoms_fit(rest, &text[taken..]))
}
