use super::*;
use std::time::Duration;

#[test]
fn the_mount_and_our_group_are_found() {
    let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
        32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
    let found = place::find_mount(hybrid).unwrap();
    assert_eq!(found.0, Path::new("/sys/fs/cgroup/unified"));
    assert_eq!(found.1, Path::new("/"));
    let odd = "41 31 0:38 /a\\040b /mnt/c\\134d rw - cgroup2 none rw\n";
    let found = place::find_mount(odd).unwrap();
    assert_eq!(found.0, Path::new("/mnt/c\\d"));
    assert_eq!(found.1, Path::new("/a b"));
    assert_eq!(
        place::find_mount("1 2 0:1 / / rw - ext4 cgroup2 rw\n"),
        None
    );
    let own = "9:name=systemd:/x\n1:cpu:/\n0::/system.slice/a.service\n";
    assert_eq!(
        place::find_own(own).unwrap(),
        Path::new("/system.slice/a.service")
    );
    assert_eq!(place::find_own("1:cpu:/\n"), None);
    assert_eq!(place::find_own("0::\n"), None);
}

#[test]
fn numbers_are_read_by_their_whole_key() {
    let text = "usage_usec_x 1\nusage_usec 25\nuser_usec 20\n";
    assert_eq!(leaf::value_of(text, "usage_usec"), Some(25));
    assert_eq!(leaf::value_of(text, "usage"), None);
    assert_eq!(leaf::value_of("populated x\n", "populated"), None);
}

#[test]
fn swap_is_closed_only_where_memory_is_limited_in_strict() {
    let mut strict = ProfileConfig::new(Baseline::Strict);
    let extras = extras_of(&strict);
    assert_eq!(
        extras,
        [("memory.swap.max", "0"), ("memory.oom.group", "1")]
    );
    strict.cgroup_limits.clear();
    assert_eq!(extras_of(&strict), [("memory.oom.group", "1")]);
    assert_eq!(extras_of(&ProfileConfig::new(Baseline::Compat)), []);
}

#[test]
fn each_device_of_io_max_is_a_write_of_its_own() {
    let mut profile = ProfileConfig::new(Baseline::Compat);
    let value = "8:0 rbps=1\n8:16 wbps=2".to_owned();
    profile.cgroup_limits.insert("io.max", value);
    let writes: Vec<_> = limits_of(&profile).collect();
    assert_eq!(
        writes,
        [("io.max", "8:0 rbps=1"), ("io.max", "8:16 wbps=2")]
    );
}

#[test]
fn a_missing_group_is_fatal_only_where_it_is_required() {
    let mut profile = ProfileConfig::new(Baseline::Strict);
    let mut report = Protections::default();
    unavailable("no v2", &profile, &mut report).unwrap();
    assert_eq!(
        report.degraded().next(),
        Some((Protection::Cgroup, "no v2"))
    );
    profile.cgroup = Want::Require;
    let refused = unavailable("no v2", &profile, &mut report).unwrap_err();
    assert_eq!(refused.reason, "feature-missing");
    assert!(refused.text.contains("no v2"), "{}", refused.text);
    profile.cgroup = Want::Off;
    unavailable("no v2", &profile, &mut report).unwrap();
    assert_eq!(report.0[&Protection::Cgroup], Level::Off);
}

/// A hierarchy of the test's own; `None` where this host has no cgroup v2 that we may write to.
struct Own(PathBuf, Hierarchy);

impl Own {
    fn new(name: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "{name} needs root");
            return None;
        }
        let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let (mount, _) = place::find_mount(&mountinfo)?;
        let parent = mount.join(format!("ctrl-exec-test-{name}-{}", std::process::id()));
        let config = ExecutorConfig {
            cgroup_parent: Some(parent.clone()),
            ..ExecutorConfig::default()
        };
        // A container may show the hierarchy read-only.
        let hierarchy = Hierarchy::set_up(&config).ok()?;
        Some(Self(parent, hierarchy))
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(self.1.runs());
        let _ = std::fs::remove_dir(&self.0);
    }
}

fn join(leaf: &Leaf, script: &str) -> std::process::Child {
    let procs = leaf.dir().join("cgroup.procs");
    let script = format!("echo $$ > {}; {script}", procs.display());
    std::process::Command::new("/bin/sh")
        .args(["-c", &script])
        .spawn()
        .unwrap()
}

fn wait_for(what: &str, check: impl Fn() -> bool) {
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while !check() {
        assert!(std::time::Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_leaf_kills_processes_that_left_session_and_parent() {
    let Some(own) = Own::new("kill") else { return };
    let profile = ProfileConfig::new(Baseline::Compat);
    let mut report = Protections::default();
    let leaf = own
        .1
        .leaf("run-1", None, &profile, &mut report)
        .unwrap()
        .unwrap();
    assert_eq!(report.0[&Protection::Cgroup], Level::Enforced);
    assert!(!leaf.populated());
    let script = "trap '' TERM; for i in 1 2 3 4 5; do setsid sleep 300 & done; exec sleep 300";
    let mut child = join(&leaf, script);
    wait_for("six processes", || leaf.processes().len() == 6);
    assert!(leaf.populated());
    assert!(leaf.usage().cpu.is_some());
    assert!(!leaf.remove());
    assert_eq!(leaf.kill(), 6);
    child.wait().unwrap();
    wait_for("empty", || !leaf.populated());
    assert!(leaf.remove());
    assert!(!leaf.dir().exists());
}

#[test]
fn what_a_dead_supervisor_left_is_killed_by_its_number_and_kept_processes_are_not() {
    let Some(own) = Own::new("number") else {
        return;
    };
    let profile = ProfileConfig::new(Baseline::Compat);
    let mut report = Protections::default();
    // No process has this number: the kernel's largest is below.
    let supervisor = 4_194_305;
    let name = Hierarchy::name_of(supervisor);
    let kept = own
        .1
        .leaf(&name, None, &profile, &mut report)
        .unwrap()
        .unwrap();
    let mut daemon = join(&kept, "exec sleep 300");
    wait_for("the daemon", || kept.populated());

    let newer = own
        .1
        .leaf(&name, None, &profile, &mut report)
        .unwrap()
        .unwrap();
    assert_ne!(newer.dir(), kept.dir());
    let mut run = join(&newer, "exec sleep 300");
    wait_for("the run", || newer.processes().len() == 1);
    assert_eq!(own.1.kill_run(supervisor), 1);
    run.wait().unwrap();
    wait_for("swept", || {
        own.1.sweep();
        !newer.dir().exists()
    });
    assert!(kept.populated());
    assert!(daemon.try_wait().unwrap().is_none());
    own.1.kill_run(supervisor);
    daemon.wait().unwrap();
    wait_for("swept", || {
        own.1.sweep();
        !kept.dir().exists()
    });
    assert_eq!(own.1.kill_run(supervisor), 0);
}

#[test]
fn a_limit_without_its_controller_is_degraded_or_refused() {
    let Some(own) = Own::new("limit") else { return };
    if own.1.controllers().any(|c| c == "memory") {
        let mut profile = ProfileConfig::new(Baseline::Strict);
        profile.cgroup = Want::Require;
        let mut report = Protections::default();
        let leaf = own
            .1
            .leaf("run-2", None, &profile, &mut report)
            .unwrap()
            .unwrap();
        let text = std::fs::read_to_string(leaf.dir().join("memory.max")).unwrap();
        assert_eq!(text.trim(), (512_u64 << 20).to_string());
        assert!(leaf.remove());
        return;
    }
    let mut profile = ProfileConfig::new(Baseline::Strict);
    let mut report = Protections::default();
    let leaf = own
        .1
        .leaf("run-2", None, &profile, &mut report)
        .unwrap()
        .unwrap();
    let why = report.degraded().next().unwrap().1.to_owned();
    assert!(
        why.contains("memory.max (the memory controller is not there)"),
        "{why}"
    );
    assert!(leaf.remove());
    profile.cgroup = Want::Require;
    assert!(own.1.leaf("run-2", None, &profile, &mut report).is_err());
    assert!(!own.1.runs().join("run-2").exists());
}

#[test]
fn a_parent_outside_cgroup_v2_is_named() {
    let config = ExecutorConfig {
        cgroup_parent: Some("/tmp/ctrl-exec-no-such".into()),
        ..ExecutorConfig::default()
    };
    let why = Hierarchy::set_up(&config).unwrap_err();
    assert!(why.contains("/tmp/ctrl-exec-no-such"), "{why}");
    assert!(!Path::new("/tmp/ctrl-exec-no-such").exists());
}

#[test]
fn a_group_serves_again_only_where_nothing_of_the_last_run_counts() {
    let Some(own) = Own::new("again") else { return };
    let profile = ProfileConfig::new(Baseline::Compat);
    let mut report = Protections::default();
    let mut next = |spare| {
        let leaf = own.1.leaf("run-3", spare, &profile, &mut report);
        leaf.unwrap().unwrap()
    };
    let burn = |leaf: &Leaf| {
        let script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done";
        join(leaf, script).wait().unwrap();
        wait_for("empty", || !leaf.populated());
        leaf.usage().cpu.unwrap()
    };
    let leaf = next(None);
    let used = burn(&leaf);
    let dir = leaf.dir().to_owned();
    let spare = match own.1.keep("run-3", leaf) {
        Ok(spare) => spare,
        // With controllers the memory of the last run would count.
        Err(leaf) => {
            assert!(own.1.controllers().next().is_some());
            assert!(leaf.remove());
            return;
        }
    };
    assert!(own.1.controllers().next().is_none());
    let leaf = next(Some(spare));
    assert_eq!(leaf.dir(), dir);
    let before = leaf.usage().cpu.unwrap();
    assert!(before < used / 2, "{before:?} of {used:?}");
    let again = burn(&leaf);
    let total = std::fs::read_to_string(dir.join("cpu.stat")).unwrap();
    let total = Duration::from_micros(leaf::value_of(&total, "usage_usec").unwrap());
    assert!(
        again > before && again + used <= total,
        "{again:?}, {used:?}, {total:?}"
    );
    // Somebody has removed it.
    let spare = own.1.keep("run-3", leaf).unwrap();
    std::fs::remove_dir(&dir).unwrap();
    let leaf = next(Some(spare));
    assert!(leaf.dir() == dir && leaf.usage().cpu < Some(used / 2));
    // That of another name is no one's.
    let leaf = own.1.keep("run-4", leaf).unwrap_err();
    let spare = own.1.keep("run-3", leaf).unwrap();
    let off = ProfileConfig {
        cgroup: Want::Off,
        ..profile.clone()
    };
    let none = own.1.leaf("run-3", Some(spare), &off, &mut report);
    assert!(none.unwrap().is_none() && !dir.exists());
}
