//! Views that outlive the run for which they were built (spec/executor.md 15.4).
//!
//! Copying the host's mounts, laying fifteen over them and taking all of it apart again was a fifth of what a run costs. A view in which the
//! script has nothing of its own is the same for the next run of the same kind: so the child that has built one passes its mount namespace
//! to the listener, and later children enter it.
//!
//! States of a view: built by a child, which looks at it, offers it and goes on; kept by the listener, at most [`MOST`] at a time; entered,
//! by as many children as there are runs; forgotten, when any mount of the host has changed, when policy was read again, or when nobody has
//! asked for anything for a moment (a view keeps file systems busy that the operator may want to unmount). Runs that are in it then end in it.
//!
//! What could go wrong, and what is done:
//! - The plan has changed, because a path is there that was not: views are known by the digest of all their steps.
//! - A file that is covered was replaced, which takes the cover away: whoever enters a view looks whether each cover is in its place, and
//!   else goes back and builds one.
//! - The script could change the view, or leave something in it: such views are not kept, see [`MountPlan`](super::MountPlan).
//! - Our root is not that of the namespace (`chroot`): it is kept along with it.

use std::ffi::CStr;
use std::hash::{Hash as _, Hasher};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use ring::digest::{Context, SHA256};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxAttributes, StatxFlags, open, statx};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::steps::Planned;

/// Views at a time. Each costs the kernel a copy of the host's mounts.
const MOST: usize = 8;
/// The digest of a plan.
type Key = [u8; 32];
/// What a child says with the descriptors: the state of the mounts for which the plan was made, and its key.
const WORD: usize = 8 + size_of::<Key>();

/// Where a process can be: a mount namespace, and a root in it.
#[derive(Debug)]
struct Place {
    namespace: OwnedFd,
    root: OwnedFd,
}

impl Place {
    /// Of the calling process. Allocates nothing.
    fn here() -> Result<Self, Errno> {
        let namespace = OFlags::RDONLY | OFlags::CLOEXEC;
        let root = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            namespace: open(c"/proc/self/ns/mnt", namespace, Mode::empty())?,
            root: open(c"/", root, Mode::empty())?,
        })
    }

    fn enter(&self) -> Result<(), Errno> {
        move_into_link_name_space(self.namespace.as_fd(), Some(LinkNameSpaceType::Mount))
    }

    /// To be called in the namespace.
    fn take_root(&self) -> Result<(), Errno> {
        rustix::process::fchdir(&self.root)?;
        rustix::process::chroot(c".")
    }
}

/// The views of a process that forks for every run.
#[derive(Debug)]
pub(super) struct Kept {
    home: Arc<Place>,
    views: Vec<(Key, Arc<Place>)>,
    /// How often all were forgotten. What was offered before does not count.
    state: u64,
    inbox: OwnedFd,
    outlet: Arc<OwnedFd>,
}

impl Kept {
    /// # Errors
    /// The kernel lacks something, or there are no descriptors: then every run builds its own.
    pub(super) fn new() -> Result<Self, Errno> {
        if !known(c"/")?.1 {
            return Err(Errno::NOSYS);
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (inbox, outlet) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok(Self {
            home: Arc::new(Place::here()?),
            views: Vec::new(),
            state: 0,
            inbox,
            outlet: Arc::new(outlet),
        })
    }

    pub(super) fn inbox(&self) -> BorrowedFd<'_> {
        self.inbox.as_fd()
    }

    pub(super) fn forget(&mut self) {
        self.state += 1;
        self.views.clear();
    }

    /// Takes in what children have offered. True: something was kept.
    pub(super) fn hear(&mut self) -> bool {
        let mut word = [0; WORD];
        let mut changed = false;
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut pieces = [IoSliceMut::new(&mut word)];
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            let heard = match recvmsg(&self.inbox, &mut pieces, &mut control, flags) {
                Ok(heard) if heard.bytes > 0 => heard.bytes,
                Err(Errno::INTR) => continue,
                _ => return changed,
            };
            let mut fds = control
                .drain()
                .filter_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                    _ => None,
                })
                .flatten();
            let (Some(namespace), Some(root)) = (fds.next(), fds.next()) else {
                continue;
            };
            let (state, key) = word.split_at(8);
            let Ok(key) = Key::try_from(key) else {
                continue;
            };
            if heard == WORD && state == self.state.to_ne_bytes() {
                self.keep(key, Place { namespace, root });
                changed = true;
            }
        }
    }

    fn keep(&mut self, key: Key, place: Place) {
        // A newer one of the same kind was built because the older one had lost a cover.
        self.views.retain(|(known, _)| *known != key);
        if self.views.len() >= MOST {
            self.views.remove(0);
        }
        self.views.push((key, Arc::new(place)));
    }

    pub(super) fn for_plan(&self, steps: &[Planned]) -> Shared {
        let mut digest = Digest(Context::new(&SHA256));
        steps.hash(&mut digest);
        let mut key = Key::default();
        key.copy_from_slice(digest.0.finish().as_ref());
        let found = self.views.iter().find(|(known, _)| *known == key);
        Shared {
            key,
            state: self.state,
            home: self.home.clone(),
            outlet: self.outlet.clone(),
            found: found.map(|(_, place)| place.clone()),
        }
    }
}

struct Digest(Context);

impl Hasher for Digest {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Nobody asks for so short a one.
    fn finish(&self) -> u64 {
        0
    }
}

/// How a plan that makes a view for several runs is carried out.
#[derive(Debug)]
pub(super) struct Shared {
    key: Key,
    state: u64,
    home: Arc<Place>,
    outlet: Arc<OwnedFd>,
    found: Option<Arc<Place>>,
}

/// Where the child is afterwards.
pub(super) enum Entered {
    /// In the view.
    View,
    /// Where it began, without a mount namespace of its own.
    Home,
}

impl Shared {
    /// There is a view: the child need not be born in a mount namespace of its own.
    pub(super) fn is_found(&self) -> bool {
        self.found.is_some()
    }

    /// In the child: enters the view, if all covers are in their places. Allocates nothing.
    ///
    /// # Errors
    /// The child is neither here nor there.
    pub(super) fn enter(&self, steps: &[Planned]) -> Result<Entered, Errno> {
        let Some(place) = &self.found else {
            return Ok(Entered::Home);
        };
        if place.enter().is_err() {
            return Ok(Entered::Home);
        }
        if place.take_root().is_ok() && stands(steps) {
            return Ok(Entered::View);
        }
        self.home.enter()?;
        self.home.take_root()?;
        Ok(Entered::Home)
    }

    /// In the child, which has just built the view: offers it to those that come later. Nothing depends on whether that succeeds.
    /// Allocates nothing.
    pub(super) fn offer(&self, steps: &[Planned]) {
        if !stands(steps) {
            return;
        }
        let Ok(place) = Place::here() else {
            return;
        };
        let mut word = [0; WORD];
        let (state, key) = word.split_at_mut(8);
        state.copy_from_slice(&self.state.to_ne_bytes());
        key.copy_from_slice(&self.key);
        let fds = [place.namespace.as_fd(), place.root.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let _ = sendmsg(
            self.outlet.as_fd(),
            &[IoSlice::new(&word)],
            &mut control,
            flags,
        );
    }
}

/// Whether something is mounted wherever the steps have covered something.
fn stands(steps: &[Planned]) -> bool {
    steps
        .iter()
        .flat_map(Planned::covers)
        .all(|path| known(path) == Ok((true, true)))
}

/// Whether there is a mount at a path itself, and whether the kernel tells that (since 5.8).
fn known(path: &CStr) -> Result<(bool, bool), Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let found = statx(CWD, path, flags, StatxFlags::empty())?;
    let told = |set: StatxAttributes| set.contains(StatxAttributes::MOUNT_ROOT);
    Ok((told(found.stx_attributes), told(found.stx_attributes_mask)))
}
