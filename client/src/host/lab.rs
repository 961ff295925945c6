//! Network namespaces for tests: each test gets a fresh one, as root or as an ordinary user.

use std::fs::File;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::sync::mpsc;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::{Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::netlink::Netlink;

const INSIDE: &str = "WHIMBREL_TEST_IN_USER_NAMESPACE";

/// Runs `body`, a closure written inside a test, in a network namespace of its own.
pub(crate) fn isolated<F, T>(body: F)
where
    F: FnOnce() -> T + Send,
    T: Future<Output = ()>,
{
    let entered = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if !enter_network_namespace() {
                return false;
            }
            run(async {
                Lab::open().up("lo").await;
                body().await;
            });
            true
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    if !entered {
        assert!(
            std::env::var_os(INSIDE).is_none(),
            "a user namespace that may not make network namespaces: run this test as root"
        );
        repeat_in_user_namespace(std::any::type_name::<F>());
    }
}

/// A second network namespace, held by a thread that lives in it.
pub(crate) struct Neighbour {
    jobs: mpsc::Sender<Box<dyn FnOnce() + Send>>,
    namespace: File,
}

impl Neighbour {
    pub(crate) fn new() -> Self {
        let (jobs, queue) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (ready, opened) = mpsc::channel();
        std::thread::spawn(move || {
            assert!(enter_network_namespace(), "no second network namespace");
            ready.send(File::open("/proc/thread-self/ns/net").unwrap()).unwrap();
            for job in queue {
                job();
            }
        });
        let namespace = opened.recv().unwrap();
        let neighbour = Self { jobs, namespace };
        neighbour.run(async || Lab::open().up("lo").await);
        neighbour
    }

    /// Runs `body` in the namespace and waits for it.
    pub(crate) fn run<F, T, R>(&self, body: F) -> R
    where
        F: FnOnce() -> T + Send + 'static,
        T: Future<Output = R>,
        R: Send + 'static,
    {
        let (answer, answered) = mpsc::channel();
        self.jobs.send(Box::new(move || answer.send(run(body())).unwrap())).unwrap();
        answered.recv().unwrap()
    }
}

/// Makes links, addresses and routes in the current namespace.
pub(crate) struct Lab {
    netlink: Netlink,
}

impl Lab {
    pub(crate) fn open() -> Self {
        Self { netlink: Netlink::open().unwrap() }
    }

    pub(crate) fn handle(&self) -> &Handle {
        self.netlink.handle()
    }

    pub(crate) async fn index(&self, name: &str) -> u32 {
        let found = self.handle().link().get().match_name(name.to_owned()).execute();
        std::pin::pin!(found).try_next().await.unwrap().unwrap().header.index
    }

    pub(crate) async fn up(&self, name: &str) {
        let message = LinkUnspec::new_with_name(name).up().build();
        self.handle().link().set(message).execute().await.unwrap();
    }

    pub(crate) async fn down(&self, name: &str) {
        let message = LinkUnspec::new_with_name(name).down().build();
        self.handle().link().set(message).execute().await.unwrap();
    }

    pub(crate) async fn delete(&self, name: &str) {
        let index = self.index(name).await;
        self.handle().link().del(index).execute().await.unwrap();
    }

    /// A pair of connected interfaces, both in this namespace and both up.
    pub(crate) async fn veth(&self, name: &str, peer: &str) {
        let message = LinkVeth::new(name, peer).build();
        self.handle().link().add(message).execute().await.unwrap();
        self.up(name).await;
        self.up(peer).await;
    }

    pub(crate) async fn hand_over(&self, name: &str, to: &Neighbour) {
        let namespace = LinkAttribute::NetNsFd(to.namespace.as_raw_fd());
        let message = LinkUnspec::new_with_name(name).append_extra_attribute(namespace).build();
        self.handle().link().set(message).execute().await.unwrap();
    }

    pub(crate) async fn address(&self, name: &str, address: IpAddr, prefix: u8) {
        use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
        let index = self.index(name).await;
        let mut request = self.handle().address().add(index, address, prefix);
        let flags = AddressAttribute::Flags(AddressFlags::Nodad);
        request.message_mut().attributes.push(flags);
        request.execute().await.unwrap();
    }

    pub(crate) async fn remove_address(&self, name: &str, address: IpAddr) {
        let index = self.index(name).await;
        let found = self.handle().address().get().set_link_index_filter(index);
        let found: Vec<_> =
            found.set_address_filter(address).execute().try_collect().await.unwrap();
        for message in found {
            self.handle().address().del(message).execute().await.unwrap();
        }
    }

    pub(crate) async fn default_route(&self, name: &str, via: IpAddr, metric: u32) {
        let index = self.index(name).await;
        let message = match via {
            IpAddr::V4(via) => RouteMessageBuilder::<Ipv4Addr>::new()
                .gateway(via)
                .output_interface(index)
                .priority(metric)
                .build(),
            IpAddr::V6(via) => RouteMessageBuilder::<Ipv6Addr>::new()
                .gateway(via)
                .output_interface(index)
                .priority(metric)
                .build(),
        };
        self.handle().route().add(message).execute().await.unwrap();
    }
}

fn run<T: Future>(body: T) -> T::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(body)
}

/// Moves this thread into a new network namespace; `false` without the privilege.
fn enter_network_namespace() -> bool {
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    #[expect(unsafe_code, reason = "unshare is unsafe for the sake of descriptor tables")]
    // SAFETY: `NEWNET` leaves the descriptor table shared.
    let entered = unsafe { unshare_unsafe(UnshareFlags::NEWNET) };
    entered.is_ok()
}

/// Runs the test a closure belongs to once more, in a process that is root of its own user
/// namespace.
fn repeat_in_user_namespace(closure: &str) {
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    let path = closure.split("::{{closure}}").next().unwrap();
    let test = path.split_once("::").unwrap().1;
    let uid_map = format!("0 {} 1", rustix::process::getuid().as_raw());
    let gid_map = format!("0 {} 1", rustix::process::getgid().as_raw());
    let enter = move || {
        #[expect(unsafe_code, reason = "unshare is unsafe for the sake of descriptor tables")]
        // SAFETY: the descriptor table is not unshared.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWUSER) }?;
        std::fs::write("/proc/self/setgroups", "deny")?;
        std::fs::write("/proc/self/uid_map", &uid_map)?;
        std::fs::write("/proc/self/gid_map", &gid_map)
    };
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture"]).env(INSIDE, "1");
    #[expect(unsafe_code, reason = "only before exec is there a single thread to unshare")]
    // SAFETY: `enter` takes no lock and touches nothing but its own strings and new files.
    unsafe {
        command.pre_exec(enter)
    };
    let status = command.status().unwrap_or_else(|error| {
        panic!(
            "this test needs network namespaces: run it as root, or allow unprivileged user \
             namespaces (sysctl kernel.unprivileged_userns_clone=1 and \
             kernel.apparmor_restrict_unprivileged_userns=0, where they exist): {error}"
        )
    });
    assert!(status.success(), "{test} failed in its user namespace");
}
