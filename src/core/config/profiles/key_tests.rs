//! Every key of a profile, in both syntaxes, with what it comes to.

use std::time::Duration;

use proptest::prelude::*;

use super::super::testing::*;
use super::super::*;

fn only(loaded: Loaded<AgentConfig>) -> ProfileConfig {
    loaded.value.profiles.into_values().next().unwrap()
}

fn conf(baseline: &str, lines: &str) -> Result<Loaded<AgentConfig>, ConfigError> {
    agent_lines(&format!(
        "[executor]\nbaseline = {baseline}\n[profile p]\nrun_as = nobody\n{lines}"
    ))
}

fn read(baseline: &str, lines: &str) -> ProfileConfig {
    only(conf(baseline, lines).unwrap_or_else(|e| panic!("{e}")))
}

fn refused(line: &str) -> String {
    error(conf("compat", &format!("{line}\n")))
}

#[test]
fn every_key_in_both_syntaxes() {
    let conf = read(
        "strict",
        "group = web\ngroups = a, 5 b\ncaps = CAP_CHOWN\nwritable = /w1:/w2\nno_new_privileges = yes\ntimeout = 7\nkill_grace = 0\non_disconnect = continue\nleftovers = keep\nhide = /h1:/h 2\nread = /r\nexecute = /x:/y\nlandlock = require\nnetwork = loopback\ntcp_connect = 80,443\ntcp_bind = none\nsyscalls = strict try\nuserns = allow\nprocesses = private\nipc = host try\nprivate_tmp = no\ntmp_size = 16M\nkernel_tunables = rw\ndevices = host\nmemory_max = 1G\nmemory_high = max\npids_max = 10\ncpu_max = 50%\nio_max = 8:0 rbps=1M, 8:16 wiops=5\ncgroup = off\nlimit_nofile = 64\nlimit_nproc = 5\nlimit_fsize = 1G\nlimit_as = unlimited\nlimit_cpu = 10\nlimit_stack = 8M\nlimit_memlock = 0\nlimit_core = unlimited\ncwd = /srv\numask = 027\nnice = -5\noom_score_adj = -1000\nenv = A=1 B_2=x=y\tC=\nscript_trust = off\napparmor = ctrl//script\nselinux = system_u:system_r:s_t:s0-s0:c0.c3\nallow_setuid = yes\nroot_semantics = off\nverified_copy = no\ni_understand_unconfined = on\n",
    );
    let toml = agent_toml(
        r#"script_dirs = ["/opt"]
[executor]
baseline = "strict"
[profile.p]
run_as = "nobody"
group = "web"
groups = ["a", 5, "b"]
caps = ["CAP_CHOWN"]
writable = ["/w1", "/w2"]
no_new_privileges = true
timeout = 7
kill_grace = 0
on_disconnect = "continue"
leftovers = "keep"
hide = ["/h1", "/h 2"]
read = ["/r"]
execute = ["/x", "/y"]
landlock = "require"
network = "loopback"
tcp_connect = [80, 443]
tcp_bind = "none"
syscalls = "strict try"
userns = "allow"
processes = "private"
ipc = "host try"
private_tmp = false
tmp_size = "16M"
kernel_tunables = "rw"
devices = "host"
memory_max = 1073741824
memory_high = "max"
pids_max = 10
cpu_max = "50000 100000"
io_max = ["8:0 rbps=1M", "8:16 wiops=5"]
cgroup = "off"
limit_nofile = 64
limit_nproc = "5"
limit_fsize = "1G"
limit_as = "unlimited"
limit_cpu = 10
limit_stack = "8M"
limit_memlock = 0
limit_core = "unlimited"
cwd = "/srv"
umask = "0027"
nice = -5
oom_score_adj = -1000
env = ["A=1", "B_2=x=y", "C="]
script_trust = "off"
apparmor = "ctrl//script"
selinux = "system_u:system_r:s_t:s0-s0:c0.c3"
allow_setuid = true
root_semantics = false
verified_copy = false
i_understand_unconfined = true
"#,
    );
    let toml = only(toml.unwrap_or_else(|e| panic!("{e}")));
    let paths = |list: &[&str]| -> Vec<AbsolutePath> {
        list.iter().map(|p| AbsolutePath::new(p).unwrap()).collect()
    };
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let expected = ProfileConfig {
        baseline: Baseline::Strict,
        run_as: Some("nobody".to_owned()),
        group: Some("web".to_owned()),
        groups: Groups::List(["a", "5", "b"].map(str::to_owned).to_vec()),
        caps: vec![caps::Capability::CAP_CHOWN],
        writable: paths(&["/w1", "/w2"]),
        no_new_privileges: true,
        timeout: Some(Duration::from_secs(7)),
        kill_grace: Duration::ZERO,
        on_disconnect: OnDisconnect::Continue,
        leftovers: Leftovers::Keep,
        hide: paths(&["/h1", "/h 2"]),
        read: paths(&["/r"]),
        execute: paths(&["/x", "/y"]),
        landlock: Want::Require,
        network: Protected::required(Network::Loopback),
        tcp_connect: Ports::Only(vec![80, 443]),
        tcp_bind: Ports::Only(Vec::new()),
        syscalls: Protected::tried(Syscalls::Strict),
        deny_userns: Protected::required(false),
        processes: Protected::required(Scope::Private),
        ipc: Protected::tried(Scope::Host),
        private_tmp: false,
        tmp_size: Some(16 << 20),
        kernel_tunables_writable: true,
        devices: Protected::required(Devices::Host),
        cgroup_limits: [
            ("memory.max", "1073741824"),
            ("memory.high", "max"),
            ("pids.max", "10"),
            ("cpu.max", "50000 100000"),
            ("io.max", "8:0 rbps=1048576\n8:16 wiops=5"),
        ]
        .map(|(file, value)| (file, value.to_owned()))
        .into(),
        cgroup: Want::Off,
        limits: [
            (LimitKind::Nofile, Some(64)),
            (LimitKind::Nproc, Some(5)),
            (LimitKind::Fsize, Some(1 << 30)),
            (LimitKind::As, None),
            (LimitKind::Cpu, Some(10)),
            (LimitKind::Stack, Some(8 << 20)),
            (LimitKind::Memlock, Some(0)),
            (LimitKind::Core, None),
        ]
        .into(),
        cwd: AbsolutePath::new("/srv").unwrap(),
        umask: 0o027,
        nice: -5,
        oom_score_adj: -1000,
        env: vec![pair("A", "1"), pair("B_2", "x=y"), pair("C", "")],
        script_trust: ScriptTrust::Off,
        apparmor: Some("ctrl//script".to_owned()),
        selinux: Some("system_u:system_r:s_t:s0-s0:c0.c3".to_owned()),
        allow_setuid: true,
        root_semantics: false,
        verified_copy: Some(false),
        i_understand_unconfined: true,
    };
    assert_eq!(conf, expected);
    assert_eq!(toml, expected);
}

#[test]
fn keys_that_are_not_set_have_the_value_of_the_baseline() {
    let user = |baseline| ProfileConfig {
        run_as: Some("nobody".to_owned()),
        ..ProfileConfig::new(baseline)
    };
    assert_eq!(read("compat", ""), user(Baseline::Compat));
    let strict = read("strict", "");
    assert_eq!(strict, user(Baseline::Strict));
    assert_eq!(strict.timeout, Some(Duration::from_secs(300)));
    assert_eq!(strict.processes, Protected::tried(Scope::Private));
    assert_eq!(strict.cgroup_limits["memory.max"], "536870912");
    assert_eq!(read("strict", "timeout = 0\n").timeout, None);
    let more = read("strict", "memory_max = max\nlimit_nofile = unlimited\n");
    assert_eq!(more.cgroup_limits["memory.max"], "max");
    assert_eq!(more.limits[&LimitKind::Nofile], None);
}

#[test]
fn defaults_that_hang_on_other_keys() {
    let kill = read("strict", "caps = CAP_KILL\n");
    assert_eq!(kill.processes, Protected::tried(Scope::Host));
    let both = read("strict", "processes = private try\ncaps = CAP_KILL\n");
    assert_eq!(both.processes, Protected::tried(Scope::Private));
    assert!(!read("compat", "").private_tmp);
    assert!(read("compat", "writable = /srv\n").private_tmp);
    assert!(!read("compat", "writable = /srv\nprivate_tmp = no\n").private_tmp);
    assert!(read("compat", "private_tmp = yes\n").private_tmp);
    assert!(read("strict", "").private_tmp);
}

#[test]
fn values_in_doubt_are_errors() {
    for (line, part) in [
        (
            "timeout = 1m",
            "'timeout' must be a whole number from 0 to 2678400, not '1m'",
        ),
        ("timeout = -1", "not '-1'"),
        (
            "timeout = 5 # s",
            "inline '# ...' comments are not supported",
        ),
        (
            "timeout = # none",
            "inline '# ...' comments are not supported",
        ),
        ("kill_grace = 3601", "from 0 to 3600"),
        (
            "on_disconnect = ignore",
            "must be kill or continue, not 'ignore'",
        ),
        ("leftovers = KILL", "must be kill or keep"),
        ("hide = etc", "hide path must be absolute: 'etc' in '"),
        (
            "hide = /a:/b # c",
            "inline '# ...' comments are not supported",
        ),
        ("read = :", "'read' names no path"),
        ("landlock = yes", "must be require, try or off"),
        (
            "network = none maybe",
            "with 'try' behind it, not 'none maybe'",
        ),
        ("network = try", "must be host, none or loopback"),
        ("network = none try try", "with 'try' behind it"),
        ("tcp_connect = 0", "ports from 1 to 65535, not '0'"),
        ("tcp_connect = 80,http", "not 'http'"),
        ("tcp_connect = 65536", "not '65536'"),
        ("tcp_connect = any,80", "not 'any'"),
        ("tcp_connect = ,", "names no port"),
        ("syscalls = on", "must be off, default or strict"),
        ("userns = no", "must be allow or deny"),
        ("processes = own", "must be host or private"),
        ("private_tmp = maybe", "1 y yes true on"),
        ("tmp_size = 1", "from 4096 to"),
        ("tmp_size = 25%", "K, M, G or T may follow"),
        ("kernel_tunables = yes", "must be ro or rw"),
        ("devices = none", "must be host or minimal"),
        ("memory_max = 512MB", "'max' or a whole number"),
        ("memory_max = 0", "from 1048576"),
        (
            "pids_max = 1K",
            "'max' or a whole number from 1 to 4194304, not '1K'",
        ),
        ("cpu_max = half", "a share such as 50%"),
        ("io_max = sda rbps=1", "a device and its limits"),
        ("cgroup = no", "must be require, try or off"),
        (
            "limit_nofile = infinity",
            "'unlimited' or a whole number from 8",
        ),
        ("limit_nofile = 1K", "not '1K'"),
        ("limit_cpu = 0", "from 1 to"),
        ("limit_as = 18446744073709551615", "'unlimited' or"),
        ("cwd = tmp", "'cwd' must be an absolute path"),
        ("umask = 8", "octal digits from 0 to 0777"),
        ("umask = 1000", "octal digits"),
        ("umask = +7", "octal digits"),
        ("nice = 20", "from -20 to 19"),
        ("nice = +5", "not '+5'"),
        ("oom_score_adj = 1001", "from -1000 to 1000"),
        ("env = A", "NAME=value pairs"),
        ("env = 1A=x", "NAME=value pairs"),
        ("env = A=1 A=2", "'env' sets A twice"),
        ("env = PATH=/evil", "'env' cannot set PATH"),
        ("env = ENVEXEC_REQID=1", "'env' cannot set ENVEXEC_REQID"),
        ("script_trust = on", "must be enforce, warn or off"),
        ("apparmor = a b", "one word"),
        ("selinux = unconfined", "a context such as user:role:type"),
        ("root_semantics = full", "1 y yes true on"),
        ("verified_copy = maybe", "1 y yes true on"),
        ("group = 4294967295", "group '4294967295' out of range in '"),
        ("group = a b", "invalid group 'a b' in '"),
        ("groups = user,a", "'user' stands alone"),
        ("groups = a;b", "invalid groups 'a;b' in '"),
        ("groups = ,", "names no group"),
        ("caps = ,", "names no capability"),
    ] {
        let said = refused(line);
        assert!(said.contains("agent.conf:10:"), "{said}");
        assert!(
            said.contains("Profile 'p': ") && said.contains(part),
            "{line}: {said}"
        );
    }
    let key_of = |line: &str| line.split(' ').next().unwrap().to_owned();
    for line in [
        "hide = x",
        "env = x",
        "umask = x",
        "io_max = x",
        "selinux = x",
    ] {
        let said = refused(&format!("{} = ", key_of(line)));
        assert!(said.contains("has no value"), "{line}: {said}");
    }
}

#[test]
fn toml_has_its_own_traps() {
    for (line, part) in [
        ("umask = 22", "a string of octal digits"),
        ("timeout = \"5\"", "a whole number from 0"),
        ("root_semantics = \"off\"", "true or false"),
        ("tcp_connect = \"80,443\"", "an array of ports"),
        ("tcp_connect = []", "names no port"),
        ("tcp_connect = [-1]", "not '-1'"),
        ("groups = []", "names no group"),
        ("hide = \"/x\"", "an array of strings"),
        ("env = [\"A=\\n\"]", "NAME=value pairs"),
        ("network = true", "must be a string"),
        ("memory_max = 1.5", "a string or a number"),
        ("apparmor = \"\"", "has no value"),
    ] {
        let text = format!("script_dirs = [\"/opt\"]\n[profile.p]\nrun_as = 1\n{line}\n");
        let said = error(agent_toml(&text));
        assert!(said.contains(part), "{line}: {said}");
    }
    let text =
        "script_dirs = [\"/opt\"]\n[profile.p]\nrun_as = 1\nenv = [\"A=b c # d\"]\nhide = []\n";
    let p = only(agent_toml(text).unwrap());
    assert_eq!(p.env, [("A".to_owned(), "b c # d".to_owned())]);
}

/// For each key some values that are right, as `.conf` has them.
const VALUES: &[(&str, &[&str])] = &[
    ("run_as", &["root", "0", "nobody", "4294967294"]),
    ("group", &["web", "12"]),
    ("groups", &["user", "none", "a,b", "7"]),
    ("caps", &["CAP_KILL", "CAP_CHOWN CAP_NET_RAW"]),
    ("writable", &["/srv", "/srv/a b:/data"]),
    ("no_new_privileges", &["yes", "no"]),
    ("timeout", &["0", "1", "300"]),
    ("kill_grace", &["0", "9"]),
    ("on_disconnect", &["kill", "continue"]),
    ("leftovers", &["kill", "keep"]),
    ("hide", &["/x", "/x:/y z"]),
    ("read", &["/usr"]),
    ("execute", &["/usr/bin:/bin"]),
    ("landlock", &["require", "try", "off"]),
    ("network", &["host", "none", "loopback try", "host try"]),
    ("tcp_connect", &["any", "none", "80,443", "22"]),
    ("tcp_bind", &["any", "none", "0 8080"]),
    (
        "syscalls",
        &["off", "default", "strict try", "off try", "default try"],
    ),
    ("userns", &["allow", "deny", "allow try", "deny try"]),
    ("processes", &["host", "private", "host try", "private try"]),
    ("ipc", &["host", "private", "host try", "private try"]),
    ("private_tmp", &["yes", "no"]),
    ("tmp_size", &["64M", "4096", "2G"]),
    ("kernel_tunables", &["ro", "rw"]),
    ("devices", &["host", "minimal", "host try", "minimal try"]),
    ("memory_max", &["max", "512M", "1G"]),
    ("memory_high", &["max", "100M"]),
    ("pids_max", &["max", "256", "1"]),
    ("cpu_max", &["max", "50%", "1000 1000", "max 5000"]),
    ("io_max", &["8:0 rbps=1M", "8:0 riops=max, 9:1 wbps=3"]),
    ("cgroup", &["require", "try", "off"]),
    ("limit_nofile", &["1024", "unlimited"]),
    ("limit_nproc", &["5", "unlimited"]),
    ("limit_as", &["1G", "9223372036854775807"]),
    ("limit_core", &["0", "unlimited", "1K"]),
    ("cwd", &["/", "/srv"]),
    ("umask", &["0", "022", "0077", "777"]),
    ("nice", &["-20", "0", "19"]),
    ("oom_score_adj", &["-1000", "0", "500"]),
    ("env", &["A=1", "A= _b=\"x\\ C=é=#"]),
    ("script_trust", &["enforce", "warn", "off"]),
    ("apparmor", &["p"]),
    ("selinux", &["u:r:t"]),
    ("allow_setuid", &["yes"]),
    ("root_semantics", &["on", "off"]),
    ("verified_copy", &["on", "off"]),
    ("i_understand_unconfined", &["yes", "no"]),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_conf_says_toml_says_too(
        picks in proptest::collection::vec(any::<prop::sample::Index>(), VALUES.len()),
        present in proptest::collection::vec(any::<bool>(), VALUES.len()),
        strict: bool,
        runs in 1usize..100,
    ) {
        let mut lines = format!("[executor]\nmax_runs = {runs}\n");
        if strict {
            lines.push_str("baseline = strict\n");
        }
        lines.push_str("[profile p.1]\n");
        for (index, (key, values)) in VALUES.iter().enumerate() {
            if present[index] {
                let value = picks[index].get(values);
                lines.push_str(&format!("{key} = {value}\n"));
            }
        }
        // Files that are refused have nothing to convert; most are not.
        let host = Host::new();
        let path = host.write("/etc/ctrl-exec-agent/agent.conf", &format!("{REQUIRED}{DIRS}{lines}"));
        let Ok(before) = host.agent() else {
            prop_assume!(strict);
            return Ok(());
        };
        let text = convert_agent(&before.value, &host.paths());
        std::fs::remove_file(path).unwrap();
        host.write("/etc/ctrl-exec-agent/agent.toml", &text);
        let after = match host.agent() {
            Ok(after) => after,
            Err(e) => return Err(TestCaseError::fail(format!("{e}\n{text}"))),
        };
        prop_assert_eq!(&after.value.profiles, &before.value.profiles, "{}", text);
        prop_assert_eq!(&after.value.executor, &before.value.executor, "{}", text);
    }

    #[test]
    fn no_value_panics(key in prop::sample::select(VALUES), value in "[ -~é]{0,24}") {
        let _ = conf("strict", &format!("{} = {value}\n", key.0));
    }
}
