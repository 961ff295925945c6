//! The client's side of the carrier: one connection to the gateway over every link there is.
//!
//! [`Tunnel`] owns the engine of QUIC and the decisions about paths; [`crate::uplinks`] owns the
//! sockets. It connects over all links at once (the first answer wins), attaches, keeps a path on
//! every link, moves between them, and connects again when the connection is lost.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tracing::{debug, info, warn};
use whimbrel_carrier::{
    Connection, ControlStream, Endpoint, Event, Identity, Lost, OpenPathError, Path, PathView,
    Progress, Role, Stream, Transmit, Tuning,
};
use whimbrel_common::identity::{PublicKey, SecretKey};
use whimbrel_common::path::Role as PathRole;
use whimbrel_common::path::{
    Action, Config, DownReason, Evidence, Input, Move, PathKey, Paths, PreferredBy, State,
};
use whimbrel_common::wire::{Control, DETACH, Denial, SessionId, Taken, VERSION};

use crate::uplinks::{SendFailed, Uplinks, link_of};

mod search;

use search::{Attempt, Search};

/// Paths are judged at most this often while traffic flows: a tenth of the shortest silence that
/// matters.
const JUDGE_EVERY: Duration = Duration::from_millis(4);

/// Without an answer on any link for so long a session counts as parked: a move takes a third of a
/// second.
const PARKED: Duration = Duration::from_secs(1);

/// Parked for so long, the old connection may be one that the gateway has forgotten: its reset is
/// recognised on the first path only. A new connection is tried beside it.
const DOUBT: Duration = Duration::from_secs(3);

/// The gateway answers a new connection: the old one gets this long to answer too, five probes.
const LAST_CHANCE: Duration = Duration::from_secs(1);

/// A path that could not be opened for want of credit from the peer is tried again after this.
const OPEN_AGAIN: Duration = Duration::from_millis(250);

/// What the owner must know of.
#[derive(Debug)]
pub(crate) enum News {
    /// The session is attached: flows may be opened. If it was resumed, the gateway has kept those
    /// there were.
    Attached { resumed: bool },
    /// The connection is lost; the session may go on over another one.
    Detached { reason: String },
    /// The session is over with everything in it.
    Ended,
    /// A stream may have something to read, or room.
    Stream(Stream),
    /// The peer abandoned a stream.
    Stopped(Stream, u64),
    /// More streams may be opened.
    StreamsAvailable,
    /// Progress and credit of flows.
    Taken(Vec<Taken>),
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
pub(crate) enum Standing {
    /// No link is up.
    Offline,
    /// Trying to reach the gateway.
    Connecting,
    /// Carrying flows.
    Attached,
    /// Holding flows: no link has answered for a while.
    Parked,
}

/// A link, for the list of paths.
#[derive(Debug, Clone)]
pub(crate) struct LinkView {
    pub(crate) link: String,
    pub(crate) state: State,
    pub(crate) metered: bool,
    pub(crate) active: bool,
    pub(crate) path: Option<PathView>,
    pub(crate) tx_bytes: u64,
    pub(crate) rx_bytes: u64,
}

/// What is known of a link beyond its sockets.
#[derive(Debug, Clone)]
struct Described {
    name: String,
    rank: u32,
    metered: bool,
}

/// A new connection, made while the old one shows no life.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    connection: Connection,
    link: PathKey,
    since: Instant,
}

/// A connection that was made.
#[derive(Debug)]
struct Live {
    connection: Connection,
    control: ControlStream,
    paths: Paths,
    /// The engine's path of each link, and whether it was validated.
    open: BTreeMap<PathKey, (Path, bool)>,
    judged: Option<Instant>,
    /// The path that carries, and since when.
    carries: (Option<PathKey>, Instant),
    /// Frames received on each path, and when their number last changed.
    heard: BTreeMap<Path, (u64, Instant)>,
    /// Links whose path is to be tried again.
    again: BTreeMap<PathKey, Instant>,
    /// Links without a path of their own, and the link whose path leaves by each.
    lent: BTreeMap<PathKey, PathKey>,
    attached: bool,
}

impl Live {
    /// Whether the path that should carry has been without an answer for [`PARKED`].
    fn is_parked(&self, now: Instant) -> bool {
        self.silent_since().is_some_and(|since| now >= since + PARKED)
    }

    /// Since when the path that should carry has been without an answer, if it is suspect.
    fn silent_since(&self) -> Option<Instant> {
        let active = self.paths.active();
        let view = self.paths.paths().find(|view| Some(view.path) == active)?;
        let silent = matches!(view.state, State::Suspect | State::Steered);
        silent.then(|| view.evidence.last_ack.map_or(view.since, |ack| ack.max(view.since)))
    }
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) endpoint: Endpoint,
    pub(crate) uplinks: Uplinks,
    gateway: Vec<SocketAddr>,
    links: BTreeMap<PathKey, Described>,
    /// The interface name of every link there ever was.
    names: BTreeMap<PathKey, String>,
    search: Search,
    live: Option<Live>,
    candidate: Option<Candidate>,
    /// The session, which outlives its connections, and how often it was attached.
    session: Option<SessionId>,
    epoch: u64,
    /// How long the gateway holds the session's flows without a connection.
    hold: Duration,
    news: VecDeque<News>,
    pub(crate) last_failure: Option<String>,
}

impl Tunnel {
    /// A tunnel to the gateway that owns `gateway_key`. It needs [addresses](Self::set_gateway) and
    /// [links](Self::link_up).
    pub(crate) fn new(key: SecretKey, gateway_key: PublicKey, mark: u32) -> anyhow::Result<Self> {
        let identity = Identity { key, role: Role::Client { gateway: gateway_key } };
        Ok(Self {
            endpoint: Endpoint::new(&identity, &Tuning::default())?,
            uplinks: Uplinks::new(mark),
            gateway: Vec::new(),
            links: BTreeMap::new(),
            names: BTreeMap::new(),
            search: Search::new(),
            live: None,
            candidate: None,
            session: None,
            epoch: 0,
            hold: Duration::ZERO,
            news: VecDeque::new(),
            last_failure: None,
        })
    }

    /// Where the gateway is.
    pub(crate) fn set_gateway(&mut self, addresses: Vec<SocketAddr>, now: Instant) {
        if addresses != self.gateway {
            self.gateway = addresses;
            self.search.hurry(now);
        }
    }

    /// A link came up, or what is known of it changed. Its sockets are in place.
    pub(crate) fn link_up(
        &mut self,
        link: PathKey,
        name: &str,
        rank: u32,
        metered: bool,
        now: Instant,
    ) {
        let described = Described { name: name.to_owned(), rank, metered };
        self.links.insert(link, described);
        self.names.insert(link, name.to_owned());
        if let Some(live) = self.live.as_mut() {
            let name = name.to_owned();
            let input = Input::LinkUp { path: link, name, rank, metered, cold: false };
            live.paths.handle(input, now);
        } else {
            self.search.hurry(now);
        }
    }

    /// A link went down. Its sockets are closed.
    pub(crate) fn link_down(&mut self, link: PathKey, reason: DownReason, now: Instant) {
        self.links.remove(&link);
        self.uplinks.remove(link);
        if let Some(live) = self.live.as_mut() {
            live.paths.handle(Input::LinkDown { path: link, reason }, now);
        }
    }

    /// The host slept, or its clock jumped.
    pub(crate) fn woke(&mut self, now: Instant) {
        if let Some(live) = self.live.as_mut() {
            live.paths.handle(Input::Woke, now);
        } else {
            self.search.hurry(now);
        }
    }

    /// A person wants the traffic on a link, or gives the choice back with `None`.
    pub(crate) fn prefer(&mut self, link: Option<PathKey>, now: Instant) -> Result<(), String> {
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
    pub(crate) fn connection(&self) -> Option<Connection> {
        self.live.as_ref().filter(|live| live.attached).map(|live| live.connection)
    }

    /// Where the tunnel stands.
    pub(crate) fn standing(&self, now: Instant) -> Standing {
        match &self.live {
            Some(live) if live.attached && live.is_parked(now) => Standing::Parked,
            Some(live) if live.attached => Standing::Attached,
            _ if self.session.is_some() => Standing::Parked,
            _ if self.links.is_empty() => Standing::Offline,
            _ => Standing::Connecting,
        }
    }

    /// The session, from its first attachment to its end.
    pub(crate) fn session(&self) -> Option<SessionId> {
        self.session
    }

    /// How long the gateway holds the session's flows without a connection.
    pub(crate) fn hold(&self) -> Duration {
        self.hold
    }

    /// Gives the session up: the gateway has dropped what it held.
    pub(crate) fn forget_session(&mut self) {
        self.session = None;
    }

    /// The round trip flows are judged by.
    pub(crate) fn rtt(&self) -> Duration {
        let live = self.live.as_ref();
        live.and_then(|live| {
            let active = live.paths.active()?;
            live.paths.paths().find(|view| view.path == active).map(|view| view.evidence.srtt)
        })
        .unwrap_or(Duration::from_millis(100))
    }

    /// A datagram arrived on a link.
    pub(crate) fn handle_datagram(
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
        let borrower = live.lent.get(&link)?;
        let connecting = self.search.uses(link)
            || self.candidate.is_some_and(|candidate| candidate.link == link);
        (!connecting).then(|| self.uplinks.stand_in(*borrower))
    }

    /// The next datagrams to send.
    pub(crate) fn poll_transmit(&mut self, now: Instant, buffer: &mut Vec<u8>) -> Option<Transmit> {
        self.endpoint.poll_transmit(now, buffer)
    }

    /// The link that datagrams which name none leave by.
    pub(crate) fn fallback(&self, transmit: &Transmit) -> Option<PathKey> {
        self.search.link_of(transmit.connection?)
    }

    /// The kernel refused to send on a link.
    pub(crate) fn send_failed(&mut self, failed: &SendFailed, now: Instant) {
        debug!(link = %failed.link, error = %failed.error, "Send failed");
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
        let paths = self.live.as_ref().and_then(|live| live.paths.poll_timeout());
        let again = self.live.as_ref().and_then(|live| live.again.values().min().copied());
        let attempts = self.search.deadline();
        let doubt = self.live.as_ref().and_then(Live::silent_since).map(|since| since + DOUBT);
        let next = match &self.live {
            None => self.search.next(),
            Some(_) => self.search.next().zip(doubt).map(|(next, doubt)| next.max(doubt)),
        };
        let next = next.filter(|_| self.can_connect() && self.candidate.is_none());
        let last_chance = self.candidate.map(|candidate| candidate.since + LAST_CHANCE);
        [self.endpoint.poll_timeout(), paths, again, attempts, next, last_chance]
            .into_iter()
            .flatten()
            .min()
    }

    fn can_connect(&self) -> bool {
        !self.links.is_empty() && !self.gateway.is_empty()
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
        if self.live.as_ref().is_none_or(|live| live.connection != connection) {
            self.handle_attempt(connection, &event, now);
            return;
        }
        match event {
            Event::Connected { .. } | Event::Opened => {}
            Event::Lost(reason) => self.lose(&reason, now),
            Event::StreamsAvailable => self.news.push_back(News::StreamsAvailable),
            Event::Readable(stream) if stream == Stream::CONTROL => self.read_control(now),
            Event::Readable(stream) | Event::Writable(stream) => {
                self.news.push_back(News::Stream(stream));
            }
            Event::Stopped(stream, code) => self.news.push_back(News::Stopped(stream, code)),
            Event::PathOpened(path) => self.path_opened(path, now),
            Event::PathClosed(path) => self.path_closed(path, now),
            Event::PathStatus { path, carry } => {
                if carry && let Some(live) = self.live.as_mut() {
                    let link = live.open.iter().find(|(_, (open, _))| *open == path);
                    if let Some((link, _)) = link {
                        let input = Input::Prefer { path: *link, by: PreferredBy::Peer };
                        live.paths.handle(input, now);
                    }
                }
            }
        }
    }

    fn handle_attempt(&mut self, connection: Connection, event: &Event, now: Instant) {
        match event {
            Event::Connected { remote, .. } => {
                let Some(winner) = self.search.remove(connection) else { return };
                debug!(gateway = %remote, "Connected");
                if let Some(live) = self.live.as_mut() {
                    let Attempt { link, .. } = winner;
                    // Some link reaches the gateway: every one of them is worth a try.
                    live.paths.handle(Input::Woke, now);
                    self.candidate = Some(Candidate { connection, link, since: now });
                    return;
                }
                info!(link = self.uplinks.name(winner.link), "Connected");
                for loser in self.search.remove_all() {
                    self.endpoint.close(loser.connection, 0, "another link was faster", now);
                }
                self.greet(connection, winner.link, now);
            }
            Event::Lost(reason) => {
                self.candidate.take_if(|candidate| candidate.connection == connection);
                let Some(lost) = self.search.remove(connection) else { return };
                self.fail(&describe(reason), self.uplinks.name(lost.link).map(str::to_owned));
                if denied(reason) {
                    self.search.rest(now);
                }
            }
            Event::Opened
            | Event::StreamsAvailable
            | Event::Readable(_)
            | Event::Writable(_)
            | Event::Stopped(..)
            | Event::PathOpened(_)
            | Event::PathClosed(_)
            | Event::PathStatus { .. } => {}
        }
    }

    fn fail(&mut self, reason: &str, link: Option<String>) {
        if self.last_failure.as_deref() != Some(reason) {
            warn!(link, reason, "Cannot reach the gateway");
            self.news.push_back(News::Failed { reason: reason.to_owned() });
        }
        self.last_failure = Some(reason.to_owned());
    }

    fn greet(&mut self, connection: Connection, link: PathKey, now: Instant) {
        let Some(stream) = self.endpoint.open(connection) else {
            self.endpoint.close(connection, Denial::Protocol.code(), "no control stream", now);
            return;
        };
        let mut control = ControlStream::new(stream);
        control.send(&Control::Hello { version: VERSION, capabilities: 0 });
        self.epoch += 1;
        control.send(&Control::Attach { session: self.session, epoch: self.epoch });
        let mut paths = Paths::new(PathRole::Client, Config::new(PathRole::Client));
        for (key, described) in &self.links {
            let (name, rank, metered) = (described.name.clone(), described.rank, described.metered);
            paths.handle(Input::LinkUp { path: *key, name, rank, metered, cold: false }, now);
        }
        // Whatever was decided about links without a connection is void.
        while paths.poll_action().is_some() {}
        paths.handle(Input::Opened { path: link }, now);
        self.uplinks.forget_steering();
        self.uplinks.prefer(link);
        self.live = Some(Live {
            connection,
            control,
            paths,
            open: BTreeMap::from([(link, (Path::FIRST, true))]),
            judged: None,
            carries: (None, now),
            heard: BTreeMap::new(),
            again: BTreeMap::new(),
            lent: BTreeMap::new(),
            attached: false,
        });
    }

    fn lose(&mut self, reason: &Lost, now: Instant) {
        let Some(live) = self.live.take() else { return };
        self.uplinks.forget_steering();
        let words = describe(reason);
        if live.attached {
            warn!(reason = words, "Connection lost");
            self.news.push_back(News::Detached { reason: words.clone() });
        }
        // The gateway said so itself and has closed what belonged to the session, or it broke the
        // rules and is not believed any more.
        let over = match reason {
            Lost::ClosedByPeer(code) => *code != DETACH,
            Lost::Closed => true,
            Lost::Reset
            | Lost::TimedOut
            | Lost::Authentication(_)
            | Lost::NotOurs(_)
            | Lost::Failed(_) => false,
        };
        if over {
            self.session = None;
            self.news.push_back(News::Ended);
        }
        self.fail(&words, None);
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

    fn give_up_attempts(&mut self, now: Instant) {
        for attempt in self.search.remove_expired(now) {
            let link = self.uplinks.name(attempt.link).map(str::to_owned);
            self.endpoint.close(attempt.connection, 0, "no answer", now);
            self.fail("the gateway does not answer", link);
        }
    }

    /// Whether a new connection is wanted: there is none, or the one there is shows no life.
    fn is_searching(&self, now: Instant) -> bool {
        let doubted = |live: &Live| live.silent_since().is_some_and(|since| now >= since + DOUBT);
        self.can_connect() && self.candidate.is_none() && self.live.as_ref().is_none_or(doubted)
    }

    /// Replaces a connection without life by one that has it, unless the old one wakes up.
    fn weigh_candidate(&mut self, now: Instant) {
        let silent_since = self.live.as_ref().and_then(Live::silent_since);
        if self.live.is_some() && silent_since.is_none() {
            let rivals = self.search.remove_all().into_iter().map(|rival| rival.connection);
            let rivals: Vec<Connection> =
                rivals.chain(self.candidate.take().map(|candidate| candidate.connection)).collect();
            for rival in rivals {
                self.endpoint.close(rival, 0, "the old connection lives", now);
            }
        }
        if let Some(candidate) = self.candidate.take_if(|it| now >= it.since + LAST_CHANCE) {
            if let Some(old) = self.live.as_ref().map(|live| live.connection) {
                self.lose(&Lost::Reset, now);
                self.endpoint.close(old, DETACH, "replaced", now);
            }
            info!(link = self.uplinks.name(candidate.link), "Connected anew");
            self.greet(candidate.connection, candidate.link, now);
        }
    }

    /// Starts the next attempt, if it is time.
    fn try_next(&mut self, now: Instant) {
        if !self.is_searching(now) {
            return;
        }
        let candidates = self.candidates();
        if candidates.is_empty() {
            self.fail("no link reaches the gateway's address family", None);
        }
        let Some((link, remote)) = self.search.choose(&candidates, now) else { return };
        match self.endpoint.connect(remote, now) {
            Ok(connection) => {
                debug!(link = self.uplinks.name(link), %remote, "Connecting");
                self.search.add(connection, link, now);
            }
            Err(error) => self.fail(&error.to_string(), None),
        }
    }

    fn candidates(&self) -> Vec<(PathKey, SocketAddr)> {
        let mut links: Vec<(&PathKey, &Described)> = self.links.iter().collect();
        links.sort_by_key(|(key, link)| (link.metered, link.rank, **key));
        let reaches = |link: PathKey| {
            self.gateway.iter().filter(move |remote| self.uplinks.reaches(link, remote.ip()))
        };
        links.iter().flat_map(|(key, _)| reaches(**key).map(|remote| (**key, *remote))).collect()
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
            Control::Hello { version, .. } => {
                if version != VERSION {
                    let code = Denial::Version.code();
                    self.endpoint.close(live.connection, code, "version", now);
                }
            }
            Control::Attached { session, hold, .. } => {
                let resumed = self.session == Some(session);
                info!(%session, resumed, "Attached");
                live.attached = true;
                self.session = Some(session);
                self.hold = Duration::from_secs(hold);
                self.last_failure = None;
                self.news.push_back(News::Attached { resumed });
            }
            Control::Taken(entries) => self.news.push_back(News::Taken(entries)),
            Control::Denied { reason } => self.fail(&reason.to_string(), None),
            Control::Enrol { .. } | Control::Attach { .. } | Control::Enrolled { .. } => {
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

    fn path_opened(&mut self, path: Path, now: Instant) {
        let Some(live) = self.live.as_mut() else { return };
        let link = live.open.iter_mut().find(|(_, (open, _))| *open == path);
        if let Some((link, (_, validated))) = link {
            *validated = true;
            live.paths.handle(Input::Opened { path: *link }, now);
        }
    }

    fn path_closed(&mut self, path: Path, now: Instant) {
        let Some(live) = self.live.as_mut() else { return };
        let link = live.open.iter().find(|(_, (open, _))| *open == path);
        if let Some((link, (_, validated))) = link.map(|(link, open)| (*link, *open)) {
            live.open.remove(&link);
            live.heard.remove(&path);
            let input = if validated {
                Input::Closed { path: link }
            } else {
                Input::OpenFailed { path: link }
            };
            live.paths.handle(input, now);
            if live.paths.active().is_none() {
                let connection = live.connection;
                self.endpoint.close(connection, DETACH, "no path is left", now);
                self.lose(&Lost::Failed("every path was closed".to_owned()), now);
            }
        }
    }

    /// Tells the path decisions what is known now, and carries them out.
    fn judge(&mut self, now: Instant) {
        let Some(live) = self.live.as_mut() else { return };
        let due = live.paths.poll_timeout().is_some_and(|deadline| deadline <= now);
        let recent = live.judged.is_some_and(|judged| now < judged + JUDGE_EVERY);
        if due || !recent {
            live.judged = Some(now);
            let active = live.paths.active();
            if live.carries.0 != active {
                live.carries = (active, now);
            }
            for (link, (path, validated)) in &live.open {
                let count = self.endpoint.heard(live.connection, *path).unwrap_or(0);
                let heard = live.heard.entry(*path).or_insert((count, now));
                if heard.0 != count {
                    *heard = (count, now);
                }
                let progress = self.endpoint.progress(live.connection, *path);
                let Some(progress) = progress.filter(|_| *validated) else { continue };
                let active_since = (active == Some(*link)).then_some(live.carries.1);
                let evidence = evidence(&progress, Some(heard.1), active_since);
                live.paths.handle(Input::Evidence { path: *link, evidence }, now);
            }
            live.paths.handle_timeout(now);
        }
        let due: Vec<PathKey> =
            live.again.iter().filter(|(_, at)| **at <= now).map(|(link, _)| *link).collect();
        for link in due {
            if let Some(live) = self.live.as_mut() {
                live.again.remove(&link);
            }
            self.open_path(link, now);
        }
        while let Some(action) = self.live.as_mut().and_then(|live| live.paths.poll_action()) {
            self.act(action, now);
        }
    }

    fn act(&mut self, action: Action, now: Instant) {
        let name = |names: &BTreeMap<PathKey, String>, link: PathKey| {
            names.get(&link).cloned().unwrap_or_else(|| format!("link {link}"))
        };
        if let Action::Open { path } = action {
            self.open_path(path, now);
            return;
        }
        let Some(live) = self.live.as_mut() else { return };
        let connection = live.connection;
        let path_of = |link: PathKey| live.open.get(&link).map(|(path, _)| *path);
        match action {
            Action::Open { .. } => {}
            Action::Probe { path } => {
                if let Some(path) = path_of(path) {
                    self.endpoint.ping(connection, path);
                }
            }
            Action::Carry { path: link } => {
                if let Some(path) = path_of(link) {
                    self.uplinks.prefer(link);
                    self.endpoint.carry(connection, path);
                }
            }
            Action::Steer { from, onto } => {
                self.uplinks.steer(from, onto);
                live.lent.retain(|_, borrower| *borrower != from);
                if !live.open.contains_key(&onto) {
                    live.lent.insert(onto, from);
                }
                if let Some(path) = path_of(from) {
                    self.endpoint.ping(connection, path);
                }
            }
            Action::Unsteer { path: link } => {
                self.uplinks.unsteer(link);
                live.lent.retain(|_, borrower| *borrower != link);
                // Answers that came in on the other link taught the engine its address: left alone,
                // the path would go on leaving there. A new one takes its place.
                let strayed = path_of(link).filter(|path| {
                    let local = self.endpoint.local(connection, *path);
                    local.is_some_and(|local| local != self.uplinks.stand_in(link))
                });
                if let Some(path) = strayed {
                    self.endpoint.close_path(connection, path, now);
                }
            }
            Action::Close { path: link } => {
                live.again.remove(&link);
                if let Some(path) = path_of(link) {
                    self.endpoint.close_path(connection, path, now);
                }
            }
            Action::Replay { silent_since, .. } => {
                self.news.push_back(News::Replay { silent_since });
            }
            Action::Moved(step) => {
                let from = step.from.map(|link| name(&self.names, link));
                let to = name(&self.names, step.to);
                self.news.push_back(News::Moved { step, from, to });
            }
            Action::StateChanged { path, from, to } => {
                let link = name(&self.names, path);
                debug!(link, %from, %to, "Path state");
                self.news.push_back(News::Path { link, from, to });
            }
        }
    }

    fn open_path(&mut self, link: PathKey, now: Instant) {
        let Some(live) = self.live.as_mut() else { return };
        if live.open.contains_key(&link) {
            return;
        }
        let remote =
            self.gateway.iter().find(|remote| self.uplinks.reaches(link, remote.ip())).copied();
        let Some(remote) = remote else {
            live.paths.handle(Input::OpenFailed { path: link }, now);
            return;
        };
        self.uplinks.renew_stand_in(link);
        let local = self.uplinks.stand_in(link);
        match self.endpoint.open_path(live.connection, remote, local, now) {
            Ok(path) => {
                live.lent.remove(&link);
                live.open.insert(link, (path, false));
            }
            Err(OpenPathError::NotYet) => {
                live.again.insert(link, now + OPEN_AGAIN);
            }
            Err(error) => {
                debug!(%link, %error, "Cannot open a path");
                live.paths.handle(Input::OpenFailed { path: link }, now);
            }
        }
    }

    /// The links, for a person.
    pub(crate) fn links(&mut self) -> Vec<LinkView> {
        let traffic = |uplinks: &Uplinks, link| uplinks.traffic(link);
        let Some(live) = self.live.as_ref() else {
            return self
                .links
                .iter()
                .map(|(key, link)| {
                    let (tx_bytes, rx_bytes) = traffic(&self.uplinks, *key);
                    let trying = self.search.uses(*key);
                    LinkView {
                        link: link.name.clone(),
                        state: if trying { State::Probing } else { State::Absent },
                        metered: link.metered,
                        active: false,
                        path: None,
                        tx_bytes,
                        rx_bytes,
                    }
                })
                .collect();
        };
        let active = live.paths.active();
        let views: Vec<_> = live
            .paths
            .paths()
            // A device that was pulled out does not come back under its old key.
            .filter(|view| view.state != State::Absent || self.links.contains_key(&view.path))
            .map(|view| (view.path, view.name.to_owned(), view.state, view.metered))
            .collect();
        views
            .into_iter()
            .map(|(key, link, state, metered)| {
                let open = live.open.get(&key).map(|(path, _)| *path);
                let path = open.and_then(|path| self.endpoint.path(live.connection, path));
                let (tx_bytes, rx_bytes) = traffic(&self.uplinks, key);
                let active = active == Some(key);
                LinkView { link, state, metered, active, path, tx_bytes, rx_bytes }
            })
            .collect()
    }

    /// The link of this name.
    pub(crate) fn link_named(&self, name: &str) -> Option<PathKey> {
        self.links.iter().find(|(_, link)| link.name == name).map(|(key, _)| *key)
    }

    /// The names of the links that are up.
    pub(crate) fn link_names(&self) -> Vec<String> {
        self.links.values().map(|link| link.name.clone()).collect()
    }

    /// Bytes deemed lost on the paths that are open.
    pub(crate) fn lost_bytes(&self) -> u64 {
        let Some(live) = self.live.as_ref() else { return 0 };
        live.open
            .values()
            .filter_map(|(path, _)| self.endpoint.progress(live.connection, *path))
            .map(|progress| progress.lost_bytes)
            .sum()
    }

    /// When the link's path last made progress.
    pub(crate) fn progress_of(&self, link: PathKey) -> Option<Instant> {
        let live = self.live.as_ref()?;
        let (path, _) = live.open.get(&link)?;
        self.endpoint.progress(live.connection, *path)?.last_ack
    }
}

/// What is known of a path, from the acknowledgements of what was sent on it.
///
/// The engine sends acknowledgements on the path that carries data, so those of a backup path are
/// lost with the active one. The gateway answers packets on a backup path by a ping on the same
/// path: there, what arrives on the link is the answer.
fn evidence(
    progress: &Progress,
    last_receive: Option<Instant>,
    active_since: Option<Instant>,
) -> Evidence {
    let (expecting_since, last_ack) = if let Some(active) = active_since {
        // Before it carried, its acknowledgements may have been lost with another path.
        (progress.expecting_since.map(|since| since.max(active)), progress.last_ack)
    } else {
        let unanswered = |since: &Instant| last_receive.is_none_or(|received| received < *since);
        (progress.expecting_since.filter(unanswered), progress.last_ack.max(last_receive))
    };
    Evidence {
        expecting_since,
        last_ack,
        last_receive,
        srtt: progress.srtt,
        rttvar: progress.rttvar,
    }
}

/// What a person must know of a lost connection.
pub(crate) fn describe(reason: &Lost) -> String {
    match reason {
        Lost::ClosedByPeer(0) => "the gateway stops".to_owned(),
        Lost::ClosedByPeer(code) => Denial::from_code(*code).map_or_else(
            || format!("the gateway closed the connection (code {code})"),
            |denial| denial.to_string(),
        ),
        Lost::Reset => "the gateway was restarted".to_owned(),
        Lost::TimedOut => "the gateway does not answer".to_owned(),
        Lost::Closed => "closed".to_owned(),
        Lost::Authentication(_) => {
            "what answers at the gateway's address does not have the gateway's key".to_owned()
        }
        Lost::NotOurs(what) => {
            format!("what answers at the gateway's address is no Whimbrel gateway: {what}")
        }
        Lost::Failed(what) => what.clone(),
    }
}

/// Only a person can change this.
fn denied(reason: &Lost) -> bool {
    match reason {
        Lost::ClosedByPeer(code) => {
            matches!(
                Denial::from_code(*code),
                Some(
                    Denial::UnknownKey
                        | Denial::Revoked
                        | Denial::InviteUnknown
                        | Denial::InviteUsed
                        | Denial::InviteExpired
                        | Denial::Version
                        | Denial::AlreadyEnrolled
                )
            )
        }
        Lost::Authentication(_) | Lost::NotOurs(_) => true,
        Lost::Reset | Lost::TimedOut | Lost::Closed | Lost::Failed(_) => false,
    }
}
