//! The client's own file, `~/.ctrl-exec-cli.conf`: lines `key = value` by the grammar of `ctrl-exec.conf` (spec/dispatcher.md 2.1).

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::applets::{AppError, Context};
use crate::complain;
use crate::core::secure_open::{self, OpenError, Trust};
use crate::core::types::Secret;

const NAME: &str = ".ctrl-exec-cli.conf";
/// Where the client of the original looks, whoever calls it.
const OF_ORIGINAL: &str = "/root/.ctrl-exec-cli.conf";
const MAX_BYTES: u64 = 64 * 1024;

/// What a file says.
#[derive(Debug, Default)]
pub(super) struct FileKeys {
    pub(super) path: PathBuf,
    pub(super) url: Option<String>,
    pub(super) token: Option<Secret<String>>,
    pub(super) username: Option<String>,
    pub(super) ca: Option<String>,
    pub(super) cert: Option<String>,
    pub(super) key: Option<String>,
}

/// Reads the file that was named, or else the first of the usual ones that is there.
///
/// # Errors
/// The named file is not there; a file cannot be read, could have been written by others, or holds a token that others can read.
pub(super) fn load(context: &Context, named: Option<&Path>) -> Result<FileKeys, AppError> {
    if let Some(path) = named {
        return read(path).map_err(|e| AppError::config(e.to_string()));
    }
    let own = context
        .var("HOME")
        .map(|home| Path::new(home).join(NAME))
        .filter(|path| path.is_absolute());
    let of_original = context.paths.resolve(OF_ORIGINAL);
    if let Some(path) = own {
        match read(&path) {
            Err(error) if error.is_not_found() => {}
            other => return other.map_err(|e| AppError::config(e.to_string())),
        }
    }
    match read(&of_original) {
        Ok(keys) => Ok(keys),
        Err(error) if error.is_not_found() => Ok(FileKeys::default()),
        // The home of root is closed to everybody else.
        Err(OpenError::Open { source, .. })
            if source.kind() == std::io::ErrorKind::PermissionDenied =>
        {
            Ok(FileKeys::default())
        }
        Err(error) => Err(AppError::config(error.to_string())),
    }
}

fn read(path: &Path) -> Result<FileKeys, OpenError> {
    let fault = |source| OpenError::Read {
        path: path.to_owned(),
        source,
    };
    let opened = secure_open::open_trusted(path, Trust::Public)?;
    let mode = opened.file.metadata().map_err(fault)?.permissions().mode() & 0o7777;
    let mut text = zeroize::Zeroizing::new(String::new());
    opened
        .file
        .take(MAX_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(fault)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(OpenError::TooLarge {
            path: path.to_owned(),
            max: MAX_BYTES,
        });
    }
    let (mut keys, warnings) = parse(&text);
    keys.path = path.to_owned();
    // The group may read it, as it may read a key.
    if keys.token.is_some() && mode & 0o007 != 0 {
        return Err(OpenError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    for warning in opened.warnings {
        complain!("Warning: {warning}");
    }
    for (line, why) in warnings {
        complain!("Warning: '{}' line {line}: {why}", path.display());
    }
    Ok(keys)
}

/// The keys of a text, and per line number what was left out. The last of several lines with one key counts.
fn parse(text: &str) -> (FileKeys, Vec<(usize, &'static str)>) {
    let mut keys = FileKeys::default();
    let mut warnings = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let content = line.trim();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let mut skip = |why| warnings.push((at + 1, why));
        if line.starts_with([' ', '\t']) {
            skip("ignored, it begins with white space; a key must begin in the first column");
            continue;
        }
        let Some((key, value)) = content.split_once('=') else {
            skip("ignored, it is not of the form 'key = value'");
            continue;
        };
        let value = value.trim();
        if value.is_empty() {
            skip("the key has no value and stays unset");
            continue;
        }
        let value = value.to_owned();
        match key.trim_end() {
            "url" => keys.url = Some(value),
            "token" => keys.token = Some(Secret::new(value)),
            "username" => keys.username = Some(value),
            "ca" => keys.ca = Some(value),
            "cert" => keys.cert = Some(value),
            "key" => keys.key = Some(value),
            _ => skip("unknown key; url, token, username, ca, cert and key are known"),
        }
    }
    (keys, warnings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_grammar_is_that_of_the_original() {
        let (keys, warnings) = parse(
            "# url = no\nurl = http://a\r\nurl=unix:/x # not a comment\ntoken =  two = words \n username = x\nusername =\nnonsense\n\
             Token = other\nca\t=\t/ca.pem\n[x]\n\n",
        );
        assert_eq!(keys.url.as_deref(), Some("unix:/x # not a comment"));
        assert_eq!(keys.token, Some(Secret::new("two = words".to_owned())));
        assert_eq!(keys.username, None);
        assert_eq!(keys.ca.as_deref(), Some("/ca.pem"));
        let lines: Vec<usize> = warnings.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [5, 6, 7, 8, 10]);
        assert!(!format!("{keys:?}").contains("two"));
    }

    #[test]
    fn a_token_that_others_can_read_is_refused_and_a_url_is_not() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("file");
        let with = |text: &str, mode| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            read(&path)
        };
        assert!(with("url = http://h\n", 0o644).is_ok());
        assert!(with("token = t\n", 0o600).is_ok());
        assert!(with("token = t\n", 0o640).is_ok());
        let exposed = with("token = t\n", 0o644).unwrap_err();
        assert!(matches!(exposed, OpenError::Exposed { .. }), "{exposed}");
        let writable = with("url = http://h\n", 0o666).unwrap_err();
        assert!(matches!(writable, OpenError::Writable { .. }), "{writable}");
        let large = "#".repeat(usize::try_from(MAX_BYTES).unwrap() + 1);
        assert!(matches!(
            with(&large, 0o600).unwrap_err(),
            OpenError::TooLarge { .. }
        ));
        assert!(read(&home.path().join("none")).unwrap_err().is_not_found());
    }
}
