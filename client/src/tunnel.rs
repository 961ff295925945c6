//! The client's side of the carrier: one connection to the gateway over every link there is.
//!
//! [`Tunnel`] owns the engine of QUIC and the loop of its events; [`crate::uplinks`] owns the
//! sockets. It connects over all links at once (`search`, `connecting`; the first answer wins) and
//! attaches the `session`. The connection that carries is `live`: it keeps a path on every link of
//! the `roster` and moves between them. What its loss means stands in `loss`, and how it is left
//! and found again when the machine sleeps in `nap`.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tracing::{debug, info, warn};
use whimbrel_carrier::{
    Connection, ControlStream, Endpoint, Event, Identity, Lost, Role, Stream, Transmit, Tuning,
};
use whimbrel_client_core::links::{Class, Terms};
use whimbrel_client_core::portal::Portals;
use whimbrel_common::identity::{PublicKey, SecretKey};
use whimbrel_common::path::{DownReason, Input, Move, PathKey, PreferredBy, State};
use whimbrel_common::wire::{
    Control, DETACH, Denial, Limit, SessionId, Taken, VERSION, WireFlow, capability,
};

use crate::uplinks::{SendFailed, Uplinks, link_of};

mod connecting;
mod live;
mod loss;
mod nap;
mod roster;
mod search;
mod session;
mod view;

pub(crate) use loss::{Failure, describe, trouble};
pub(crate) use view::LinkView;

use connecting::Candidate;
use live::{Live, Surroundings};
use loss::{denied, ends_session};
use roster::{Described, Roster};
use search::Search;
use session::Session;

/// What the owner must know of.
#[derive(Debug)]
pub(crate) enum News {
    /// The session is attached: flows may be opened. If it was resumed, the gateway has kept those
    /// there were.
    Attached { resumed: bool },
    /// The connection is lost; the session may go on over another one. When the gateway was heard
    /// last.
    Detached { reason: String, heard: Option<Instant> },
    /// The session is over with everything in it.
    Ended,
    /// A stream may have something to read, or room.
    Stream(Stream),
    /// The peer abandoned a stream.
    Stopped(Stream, u64),
    /// More streams may be opened.
    StreamsAvailable,
    /// Parcels came.
    Parcels,
    /// Progress and credit of flows.
    Taken(Vec<Taken>),
    /// The gateway has given these flows up.
    Over(Vec<WireFlow>),
    /// A limit of the gateway holds this client back.
    Limited(Limit),
    /// A path died: what was in flight must be sent again.
    Replay { silent_since: Instant },
    /// The traffic moved.
    Moved { step: Move, from: Option<String>, to: String },
    /// A path changed its state.
    Path { link: String, from: State, to: State },
    /// Connecting failed, in words for a person.
    Failed { reason: String },
}

/// Where the tunnel stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// No link is up.
    Offline,
    /// Trying to reach the gateway.
    Connecting,
    /// Carrying flows.
    Attached,
    /// Holding flows: no link has answered for a while.
    Parked,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Tunnel {
    /// The connections.
    pub endpoint: Endpoint,
    /// The links.
    pub uplinks: Uplinks,
    gateway: Vec<SocketAddr>,
    links: Roster,
    search: Search,
    live: Option<Live>,
    candidate: Option<Candidate>,
    session: Session,
    news: VecDeque<News>,
    /// Nothing is tried: the machine sleeps, or is about to.
    resting: bool,
    pub(crate) last_failure: Option<Failure>,
    /// The links over which the gateway does not answer.
    pub(crate) portals: Portals,
}

impl Tunnel {
    /// A tunnel to the gateway that owns `gateway_key`. It needs [addresses](Self::set_gateway) and
    /// [links](Self::link_up). Its sockets carry the firewall mark `mark`; zero sets none.
    ///
    /// # Errors
    /// The key cannot be used.
    pub fn new(
        key: SecretKey,
        gateway_key: PublicKey,
        mark: u32,
        tuning: &Tuning,
    ) -> anyhow::Result<Self> {
        let identity = Identity { key, role: Role::Client { gateway: gateway_key } };
        Ok(Self {
            endpoint: Endpoint::new(&identity, tuning)?,
            uplinks: Uplinks::new(mark),
            gateway: Vec::new(),
            links: Roster::default(),
            search: Search::new(),
            live: None,
            candidate: None,
            session: Session::default(),
            news: VecDeque::new(),
            resting: false,
            last_failure: None,
            portals: Portals::default(),
        })
    }

    /// Where the gateway is.
    pub fn set_gateway(&mut self, addresses: Vec<SocketAddr>, now: Instant) {
        if addresses != self.gateway {
            self.gateway = addresses;
            self.search.hurry(now);
        }
    }

    /// A link came up, or what is known of it changed. Its sockets are in place.
    pub fn link_up(&mut self, link: PathKey, name: &str, class: Class, terms: Terms, now: Instant) {
        let described = Described { name: name.to_owned(), class, terms };
        if let Some(live) = self.live.as_mut() {
            live.paths.handle(described.up(link), now);
        } else {
            self.search.hurry(now);
        }
        self.links.add(link, described);
    }

    /// A link went down. Its sockets are closed.
    pub fn link_down(&mut self, link: PathKey, reason: DownReason, now: Instant) {
        self.links.remove(link);
        self.uplinks.remove(link);
        self.portals.forget(link);
        if let Some(live) = self.live.as_mut() {
            live.paths.handle(Input::LinkDown { path: link, reason }, now);
        }
    }

    /// A person wants the traffic on a link, or gives the choice back with `None`.
    ///
    /// # Errors
    /// Why that is not possible, in words for a person.
    pub fn prefer(&mut self, link: Option<PathKey>, now: Instant) -> Result<(), String> {
        let Some(live) = self.live.as_mut() else {
            return Err("there is no connection to the gateway to move".to_owned());
        };
        let input = link.map_or(Input::Auto, |path| Input::Prefer { path, by: PreferredBy::Hand });
        live.paths.handle(input, now);
        Ok(())
    }

    /// Application bytes moved.
    pub(crate) fn activity(&mut self, now: Instant) {
        if let Some(live) = self.live.as_mut() {
            live.paths.handle(Input::Activity, now);
        }
    }

    /// The connection flows use, once the session is attached.
    pub fn connection(&self) -> Option<Connection> {
        self.live.as_ref().filter(|live| live.attached).map(|live| live.connection)
    }

    /// Whether the gateway that is attached can do all of this
    /// ([`capability`](whimbrel_common::wire::capability)).
    pub(crate) fn can(&self, capabilities: u64) -> bool {
        let live = self.live.as_ref().filter(|live| live.attached);
        live.is_some_and(|live| live.capabilities & capabilities == capabilities)
    }

    /// Where the tunnel stands.
    pub fn standing(&self, now: Instant) -> Standing {
        match &self.live {
            Some(live) if live.attached && (self.resting || live.is_parked(now)) => {
                Standing::Parked
            }
            Some(live) if live.attached => Standing::Attached,
            _ if self.session.id().is_some() => Standing::Parked,
            _ if self.links.is_empty() => Standing::Offline,
            _ => Standing::Connecting,
        }
    }

    /// The session, from its first attachment to its end.
    pub fn session(&self) -> Option<SessionId> {
        self.session.id()
    }

    /// How long the gateway holds the session's flows without a connection.
    pub(crate) fn hold(&self) -> Duration {
        self.session.hold()
    }

    /// Gives the session up: the gateway has dropped what it held.
    pub(crate) fn forget_session(&mut self) {
        self.session.end();
    }

    /// The round trip flows are judged by.
    pub(crate) fn rtt(&self) -> Duration {
        self.live.as_ref().and_then(Live::rtt).unwrap_or(Duration::from_millis(100))
    }

    /// A datagram arrived on a link.
    pub fn handle_datagram(
        &mut self,
        remote: SocketAddr,
        local: Option<IpAddr>,
        ecn: Option<u8>,
        data: BytesMut,
        now: Instant,
    ) {
        let local = local.map(|local| self.borrower_of(local).unwrap_or(local));
        self.endpoint.handle_datagram(remote, local, ecn, data, now);
    }

    /// What comes in on a link that is lent belongs to the path that leaves there. Under the link's
    /// own stand-in the engine would take it for a migration, and let the path go on from there.
    fn borrower_of(&self, local: IpAddr) -> Option<IpAddr> {
        let (live, link) = (self.live.as_ref()?, link_of(local)?);
        let borrower = live.borrower_of(link)?;
        (!self.connects_over(link)).then(|| self.uplinks.stand_in(borrower))
    }

    /// The next datagrams to send.
    pub fn poll_transmit(&mut self, now: Instant, buffer: &mut Vec<u8>) -> Option<Transmit> {
        self.endpoint.poll_transmit(now, buffer)
    }

    /// The link that datagrams which name none leave by.
    pub fn fallback(&self, transmit: &Transmit) -> Option<PathKey> {
        self.search.link_of(transmit.connection?)
    }

    /// The kernel refused to send on a link.
    pub fn send_failed(&mut self, failed: &SendFailed, now: Instant) {
        debug!(link = %failed.link, error = %failed.error, "Send failed");
        if failed.error.kind() == io::ErrorKind::PermissionDenied {
            self.search.forbid(failed.link);
        }
        if let Some(live) = self.live.as_mut() {
            live.paths.handle(Input::SendError { path: failed.link }, now);
        }
    }

    /// What happened since the last call.
    pub(crate) fn poll_news(&mut self) -> Option<News> {
        self.news.pop_front()
    }

    /// When [`advance`](Self::advance) wants to be called.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let live = self.live.as_ref().and_then(Live::poll_timeout);
        [self.endpoint.poll_timeout(), live, self.poll_connecting()].into_iter().flatten().min()
    }

    /// Lets everything that was touched react.
    pub(crate) fn advance(&mut self, now: Instant) {
        self.endpoint.handle_timeout(now);
        self.endpoint.advance();
        while let Some((connection, event)) = self.endpoint.poll_event() {
            self.handle_event(connection, event, now);
        }
        self.give_up_attempts(now);
        self.try_next(now);
        self.judge(now);
        self.weigh_candidate(now);
        self.flush(now);
    }

    fn handle_event(&mut self, connection: Connection, event: Event, now: Instant) {
        let live = self.live.as_mut().filter(|live| live.connection == connection);
        let Some(live) = live else {
            self.handle_attempt(connection, &event, now);
            return;
        };
        match event {
            Event::Connected { .. } | Event::Opened => {}
            Event::Lost(reason) => self.lose(&reason, now),
            Event::StreamsAvailable => self.news.push_back(News::StreamsAvailable),
            Event::Readable(stream) if stream == Stream::CONTROL => self.read_control(now),
            Event::Readable(stream) | Event::Writable(stream) => {
                self.news.push_back(News::Stream(stream));
            }
            Event::Stopped(stream, code) => self.news.push_back(News::Stopped(stream, code)),
            Event::Datagrams => self.news.push_back(News::Parcels),
            Event::PathOpened(path) => live.path_opened(path, now),
            Event::PathClosed(path) => {
                if live.path_closed(path, now) {
                    self.endpoint.close(connection, DETACH, "no path is left", now);
                    self.lose(&Lost::Failed("every path was closed".to_owned()), now);
                }
            }
            Event::PathStatus { path, carry: true } => live.path_wanted(path, now),
            Event::PathStatus { carry: false, .. } => {}
        }
    }

    fn fail(&mut self, failure: Failure, link: Option<String>) {
        if self.last_failure.as_ref() != Some(&failure) {
            warn!(link, reason = failure.text, "Cannot reach the gateway");
            self.news.push_back(News::Failed { reason: failure.text.clone() });
        }
        self.last_failure = Some(failure);
    }

    fn greet(&mut self, connection: Connection, link: PathKey, now: Instant) {
        let Some(stream) = self.endpoint.open(connection) else {
            self.endpoint.close(connection, Denial::Protocol.code(), "no control stream", now);
            return;
        };
        let mut control = ControlStream::new(stream);
        control.send(&Control::Hello { version: VERSION, capabilities: capability::ALL });
        control.send(&self.session.ask());
        self.uplinks.forget_steering();
        self.uplinks.prefer(link);
        self.portals.clear(link);
        self.live = Some(Live::new(connection, control, link, &self.links, now));
    }

    fn lose(&mut self, reason: &Lost, now: Instant) {
        let Some(live) = self.live.take() else { return };
        self.uplinks.forget_steering();
        let heard = live.heard();
        if self.resting {
            self.leave_quietly(live.attached, heard, reason);
            return;
        }
        let words = describe(reason);
        if live.attached {
            warn!(reason = words, "Connection lost");
            self.news.push_back(News::Detached { reason: words, heard });
        }
        if ends_session(reason) {
            self.session.end();
            self.news.push_back(News::Ended);
        }
        self.fail(reason.into(), None);
        self.search.start_over(now);
        if denied(reason) {
            self.search.rest(now);
        }
    }

    /// Ends the connection in an orderly way.
    pub(crate) fn close(&mut self, now: Instant) {
        if let Some(live) = self.live.take() {
            self.endpoint.close(live.connection, 0, "the client stops", now);
        }
        for attempt in self.search.remove_all() {
            self.endpoint.close(attempt.connection, 0, "the client stops", now);
        }
    }

    fn read_control(&mut self, now: Instant) {
        loop {
            let Some(live) = self.live.as_mut() else { return };
            match live.control.receive(&mut self.endpoint, live.connection) {
                Ok(None) => return,
                Ok(Some(frame)) => self.handle_control(frame, now),
                Err(error) => {
                    warn!(%error, "Control stream ended");
                    let code = Denial::Protocol.code();
                    self.endpoint.close(live.connection, code, "control stream", now);
                    return;
                }
            }
        }
    }

    fn handle_control(&mut self, frame: Control, now: Instant) {
        let Some(live) = self.live.as_mut() else { return };
        match frame {
            Control::Hello { version, capabilities } => {
                live.capabilities = capabilities & capability::ALL;
                if version != VERSION {
                    let code = Denial::Version.code();
                    self.endpoint.close(live.connection, code, "version", now);
                }
            }
            Control::Attached { session, hold, .. } => {
                let resumed = self.session.attach(session, Duration::from_secs(hold));
                info!(%session, resumed, "Attached");
                live.attached = true;
                self.last_failure = None;
                self.news.push_back(News::Attached { resumed });
            }
            Control::Taken(entries) => self.news.push_back(News::Taken(entries)),
            Control::Over(flows) => self.news.push_back(News::Over(flows)),
            Control::Limited(limit) => self.news.push_back(News::Limited(limit)),
            Control::Denied { reason } => {
                self.fail((&Lost::ClosedByPeer(reason.code())).into(), None)
            }
            Control::Enrol { .. }
            | Control::Attach { .. }
            | Control::Holding { .. }
            | Control::Park
            | Control::Enrolled { .. } => {
                let code = Denial::Protocol.code();
                self.endpoint.close(live.connection, code, "unexpected frame", now);
            }
        }
    }

    /// Queues frames for the gateway.
    pub(crate) fn send(&mut self, frames: &[Control]) {
        if let Some(live) = self.live.as_mut() {
            frames.iter().for_each(|frame| live.control.send(frame));
        }
    }

    /// Hands queued frames to the carrier.
    pub(crate) fn flush(&mut self, now: Instant) {
        let Some(live) = self.live.as_mut() else { return };
        if let Err(error) = live.control.flush(&mut self.endpoint, live.connection) {
            warn!(%error, "Control stream ended");
            let code = Denial::Protocol.code();
            self.endpoint.close(live.connection, code, "control stream", now);
        }
    }

    /// Lets the connection judge its paths, and carries out what it decides.
    fn judge(&mut self, now: Instant) {
        let Some(live) = self.live.as_mut() else { return };
        let mut around = Surroundings {
            endpoint: &mut self.endpoint,
            uplinks: &mut self.uplinks,
            gateway: &self.gateway,
            links: &self.links,
            news: &mut self.news,
            portals: &mut self.portals,
        };
        live.judge(&mut around, now);
    }
}
