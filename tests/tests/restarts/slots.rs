//! A gateway with several data threads: who carries whom, and what happens when that changes.

use crate::kept::PACE;
use crate::rogue::{Rogue, key};
use crate::stage::{
    ORIGIN, PATIENCE, Stage, accept, connect, expect_reset, listen, log_of, no_panics, tell, until,
};
use crate::traffic::Traffic;
use crate::traveller::Traveller;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};
use whimbrel_carrier::Lost;
use whimbrel_common::wire::{Control, DETACH, Denial, FlowAnswer, SessionId, WireFlow};
use whimbrel_tests::daemon::edit;
use whimbrel_tests::dice::{self, Dice};
use whimbrel_tests::lab::ORIGIN_V4;
use whimbrel_tests::traffic::{port, service};

/// Slots of the gateway, more than there are cores.
pub(crate) const SLOTS: u8 = 4;

/// Clients beside each other: that all of them are on one slot does not happen.
const CLIENTS: u8 = 12;

/// Addresses the laptop's translator comes to have.
const OUTSIDE: [Ipv4Addr; 3] = [
    Ipv4Addr::new(203, 0, 113, 77),
    Ipv4Addr::new(203, 0, 113, 78),
    Ipv4Addr::new(203, 0, 113, 79),
];

/// Connections that are over, before a slot parks the sockets of the others anew: a little more than
/// a thousand.
const LITTER: usize = 1100;

/// Credit for everything said here.
const PLENTY: u64 = 1 << 20;

pub(crate) fn raise(slots: u8) -> Result<Stage> {
    Stage::raise_kept_with(|table| set_slots(table, slots))
}

fn set_slots(table: &mut toml::Table, slots: u8) {
    table.insert("slots".to_owned(), i64::from(slots).into());
}

fn echo() -> SocketAddr {
    service(ORIGIN_V4, port::ECHO)
}

/// A field of every slot, added up.
pub(crate) fn total(status: &Value, field: &str) -> u64 {
    let slots = status["slots"].as_array().map(Vec::as_slice).unwrap_or_default();
    slots.iter().filter_map(|slot| slot[field].as_u64()).sum()
}

impl Stage {
    /// Whether its two clients are on one slot.
    fn are_together(&self) -> Result<bool> {
        let status = self.adds_up()?;
        let slots = status["slots"].as_array().context("no slots")?;
        Ok(slots.iter().any(|slot| slot["connections"] == 2))
    }

    /// What the gateway says of itself; what its slots say must add up to it.
    pub(crate) fn adds_up(&self) -> Result<Value> {
        let status = self.gateway.status(&self.world)?;
        for (whole, part) in [("connected", "connections"), ("flows", "flows")] {
            ensure!(status[whole] == total(&status, part), "{whole} does not add up: {status}");
        }
        Ok(status)
    }
}

pub(crate) fn clients_that_change_their_address_stay_on_their_slot() -> Result<()> {
    let stage = raise(SLOTS)?;
    let mut rogues = Vec::new();
    for number in 1..=CLIENTS {
        let mut rogue = Rogue::admitted(&stage.world, &format!("nomad-{number}"), number)?;
        let stream = rogue.dial(1, echo(), PLENTY)?;
        ensure!(matches!(rogue.answer(stream)?, Some(FlowAnswer::Opened { .. })));
        rogue.converse(stream, b"here I am")?;
        rogues.push((rogue, stream));
    }
    let rounds = 10;
    for _ in 0..rounds {
        for (number, (rogue, stream)) in rogues.iter_mut().enumerate() {
            rogue.rebind(&stage.world)?;
            rogue.converse(*stream, b"and here").with_context(|| format!("client {number}"))?;
        }
    }
    ramble(&stage).context("the laptop")?;
    let changes = rounds * u64::from(CLIENTS);
    until("every change of address is counted", || {
        Ok(total(&stage.adds_up()?, "readdressed") >= changes)
    })?;
    let status = stage.adds_up()?;
    ensure!(status["slots"].as_array().map(Vec::len) == Some(usize::from(SLOTS)), "{status}");
    ensure!(status["connected"] == u64::from(CLIENTS) + 1, "{status}");
    let busy = |slot: &&Value| slot["connections"] != 0;
    let used = status["slots"].as_array().into_iter().flatten().filter(busy).count();
    ensure!(used > 1, "all clients are on one slot: {status}");
    ensure!(total(&status, "strayed") == 0, "{status}");
    tell!("{} datagrams, {changes} changes of address", total(&status, "datagrams"));
    no_panics(&stage.world)
}

/// The laptop's addresses change in every way there is, and its connection goes on.
fn ramble(stage: &Stage) -> Result<()> {
    let mut pair = stage.pair(ORIGIN[0])?;
    let wifi = stage.world.link("wifi0");
    for outside in OUTSIDE {
        wifi.rebind();
        pair.converse().context("another port")?;
        wifi.rebind_to(Some(outside), None);
        pair.converse().context("another address")?;
        wifi.down()?;
        pair.converse().context("another network")?;
        wifi.up()?;
        pair.converse().context("the network is back")?;
    }
    Ok(())
}

pub(crate) fn datagrams_that_the_kernel_does_not_sort_are_passed_on() -> Result<()> {
    let mut stage = raise(SLOTS)?;
    let mut pair = stage.pair(ORIGIN[0])?;
    let mut travellers = Vec::new();
    for number in 1..=6 {
        travellers.push(Traveller::set_out(&stage.world, number, echo(), 3)?);
    }
    ensure!(total(&stage.adds_up()?, "strayed") == 0);
    // Which slot has them does not depend on their ports, and now the kernel goes by these.
    stage.gateway.process().say("scatter")?;
    until("datagrams go astray", || {
        for traveller in &mut travellers {
            traveller.speak(10_000)?;
            traveller.settle()?;
        }
        pair.converse()?;
        Ok(total(&stage.adds_up()?, "strayed") > 1000)
    })?;
    for traveller in &mut travellers {
        traveller.move_on(&stage.world)?;
        traveller.speak(10_000)?;
        traveller.settle()?;
    }
    let status = stage.adds_up()?;
    let (all, strayed) = (total(&status, "datagrams"), total(&status, "strayed"));
    tell!("{strayed} of {all} datagrams went astray and were passed on");
    no_panics(&stage.world)
}

pub(crate) fn what_moved_away_is_kept_although_the_slot_it_left_tidies_up() -> Result<()> {
    let mut stage = raise(SLOTS)?;
    let mut pair = stage.pair(ORIGIN[0])?;
    let mut traveller = Traveller::set_out(&stage.world, 1, echo(), 20)?;
    // Together with the laptop's client, and then without it.
    for together in [true, false] {
        let deadline = Instant::now() + PATIENCE;
        while stage.are_together()? != together {
            ensure!(Instant::now() < deadline, "never together: {together}");
            traveller.move_on(&stage.world)?;
            traveller.settle()?;
        }
    }
    // Enough connections of the laptop's for its slot to park its sockets anew.
    let listener = listen(stage.world.host("origin"))?;
    let to = SocketAddr::new(ORIGIN[0], listener.local_addr()?.port());
    for number in 0..LITTER {
        let app = connect(&stage.world, to).with_context(|| format!("connection {number}"))?;
        drop((app, accept(&listener)?));
    }
    stage.gateway.kill()?;
    traveller.move_on(&stage.world)?;
    traveller.speak(1000)?;
    traveller.settle().context("what had moved away")?;
    pair.converse().context("what stayed")?;
    no_panics(&stage.world)
}

pub(crate) fn sessions_move_between_slots_and_lose_no_byte() -> Result<()> {
    let seed = dice::seed();
    let mut dice = Dice::new(seed);
    let moves = dice::number("WHIMBREL_MOVES").unwrap_or(40);
    tell!("seed {seed}, {moves} moves of each");
    let stage = raise(SLOTS)?;
    let mut travellers = Vec::new();
    for number in 1..=3 {
        travellers.push(Traveller::set_out(&stage.world, number, echo(), 5)?);
    }
    for _ in 0..moves {
        for traveller in &mut travellers {
            traveller.speak(dice.throw(12_000))?;
            if dice.throw(2) == 0 {
                traveller.rogue.linger(Duration::from_micros(dice.throw(8000)))?;
            }
            traveller.glance()?;
            if dice.throw(3) == 0 {
                // The gateway knows that this connection is gone.
                let connection = traveller.rogue.connection;
                traveller.rogue.endpoint.close(connection, DETACH, "gone", Instant::now());
                traveller.rogue.until("it is closed", |rogue| Ok(rogue.lost.is_some()))?;
            }
            traveller
                .move_on(&stage.world)
                .with_context(|| format!("epoch {}", traveller.epoch))?;
            traveller.speak(dice.throw(5000))?;
        }
    }
    for traveller in &mut travellers {
        traveller.settle()?;
    }
    let status = stage.adds_up()?;
    let (moved, bytes) =
        (total(&status, "moved_in"), travellers.iter().map(Traveller::heard).sum::<u64>());
    tell!("{moved} of {} attaches led to another slot, {bytes} bytes came back", moves * 3);
    // Three of four do, on average.
    ensure!(moved > moves, "{status}");
    ensure!(status["connected"] == 4 && status["flows"] == 15, "{status}");
    for traveller in travellers {
        let Traveller { mut rogue, .. } = traveller;
        rogue.endpoint.close(rogue.connection, 0, "done", Instant::now());
        rogue.until("it is closed", |rogue| Ok(rogue.lost.is_some()))?;
    }
    until("nothing is left of them", || {
        let status = stage.adds_up()?;
        Ok(status["flows"] == 0 && status["connected"] == 1 && status["parked"]["sessions"] == 0)
    })?;
    no_panics(&stage.world)
}

pub(crate) fn the_last_of_several_attaches_at_once_has_the_session() -> Result<()> {
    let stage = raise(SLOTS)?;
    let mut traveller = Traveller::set_out(&stage.world, 1, echo(), 2)?;
    let mut overtaken = 0;
    for round in 0..25 {
        traveller.speak(3000)?;
        let mut asking = Vec::new();
        for _ in 0..4 {
            asking.push(traveller.begin_to_move(&stage.world)?);
        }
        if round % 2 == 0 {
            // The others' words are on their way already.
            asking.rotate_left(3);
        }
        let deadline = Instant::now() + PATIENCE;
        let mut settled = false;
        while !settled {
            ensure!(Instant::now() < deadline, "round {round}: not everybody was answered");
            settled = true;
            for rogue in &mut asking {
                rogue.linger(Duration::from_millis(1))?;
                settled &= rogue.is_attached()? || rogue.lost.is_some();
            }
        }
        let last = if round % 2 == 0 { 0 } else { 3 };
        let heir = asking.remove(last);
        ensure!(heir.session == Some(traveller.session), "round {round}: the last one lost it");
        overtaken += asking.iter().filter(|one| one.session != heir.session).count();
        traveller.go_on_with(heir)?;
        traveller.settle().with_context(|| format!("round {round}"))?;
        for mut other in asking {
            if other.session == Some(traveller.session) {
                ensure!(other.code_of_the_end()? == DETACH);
            } else {
                // It came too late and got a session of its own.
                other.endpoint.close(other.connection, 0, "done", Instant::now());
                other.until("it is closed", |rogue| Ok(rogue.lost.is_some()))?;
            }
        }
    }
    tell!("{overtaken} attaches were overtaken");
    until("nothing is left of the others", || {
        let status = stage.adds_up()?;
        Ok(status["flows"] == 2 && status["connected"] == 2 && status["parked"]["sessions"] == 0)
    })?;
    no_panics(&stage.world)
}

pub(crate) fn a_client_revoked_while_it_moves_has_nothing_left() -> Result<()> {
    let stage = raise(SLOTS)?;
    let config = stage.world.gateway_config().display().to_string();
    for number in 1..=8 {
        let listener = listen(stage.world.host("origin"))?;
        let to = SocketAddr::new(ORIGIN[0], listener.local_addr()?.port());
        let name = format!("fugitive-{number}");
        let mut rogue = Rogue::admitted(&stage.world, &name, number)?;
        let session = rogue.session;
        let stream = rogue.dial(1, to, PLENTY)?;
        ensure!(matches!(rogue.answer(stream)?, Some(FlowAnswer::Opened { .. })));
        let (mut server, _) = accept(&listener)?;
        let code = std::thread::scope(|scope| {
            let revoke =
                scope.spawn(|| stage.world.ask_gateway(&["revoke", &name, "--config", &config]));
            let code = flee(&stage, number, session)?;
            let said = revoke.join().expect("it does not panic")?;
            ensure!(said.starts_with(&format!("Revoked {name}")), "{said}");
            Ok(code)
        })?;
        let right = [Denial::UnknownKey, Denial::Revoked].iter().any(|it| it.code() == code);
        ensure!(right, "the end had code {code}");
        expect_reset(&mut server).context("the destination hears of it")?;
    }
    until("nothing is left of them", || {
        let status = stage.adds_up()?;
        Ok(status["flows"] == 0 && status["connected"] == 1 && status["parked"]["sessions"] == 0)
    })?;
    no_panics(&stage.world)
}

/// Attaches again and again, until the gateway ends it; with which code.
fn flee(stage: &Stage, number: u8, session: Option<SessionId>) -> Result<u64> {
    let deadline = Instant::now() + PATIENCE;
    let mut epoch = 2;
    while Instant::now() < deadline {
        let mut rogue = Rogue::connect(&stage.world, key(number))?;
        // It may be cut off before it says a word.
        if rogue.ask(session, epoch).is_err() {
            return rogue.code_of_the_end();
        }
        rogue.until("an answer", |rogue| Ok(rogue.is_attached()? || rogue.lost.is_some()))?;
        if rogue.lost.is_some() {
            return rogue.code_of_the_end();
        }
        epoch += 1;
    }
    bail!("it was never cut off")
}

pub(crate) fn kills_while_sessions_move_lose_nothing_with_any_number_of_slots() -> Result<()> {
    let seed = dice::seed();
    let mut dice = Dice::new(seed);
    let kills = dice::number("WHIMBREL_KILLS").unwrap_or(16);
    tell!("seed {seed}, {kills} kills");
    let mut stage = raise(SLOTS)?;
    let mut travellers = Vec::new();
    for number in 1..=3 {
        travellers.push(Traveller::set_out(&stage.world, number, echo(), 6)?);
    }
    let pairs = [stage.pair(ORIGIN[0])?, stage.pair(ORIGIN[1])?];
    let mut traffic = Vec::new();
    for (number, pair) in (100..).step_by(10).zip(&pairs) {
        traffic.push(Traffic::begin(pair, number, PACE)?);
    }
    let session = stage.session()?;
    for kill in 0..kills {
        let slots = [2, 1, 3, SLOTS][usize::try_from(kill % 4)?];
        edit(&stage.world.gateway_config(), |table| set_slots(table, slots))?;
        let mut asking = Vec::new();
        for traveller in &mut travellers {
            traveller.speak(dice.throw(6000))?;
            traveller.glance()?;
            asking.push(traveller.begin_to_move(&stage.world)?);
        }
        std::thread::sleep(Duration::from_micros(dice.throw(1500)));
        if kill % 5 == 4 {
            stage.gateway.restart()?;
        } else {
            stage.gateway.kill()?;
        }
        // What was asked of the process before was done, or half done, or not.
        drop(asking);
        for (number, traveller) in travellers.iter_mut().enumerate() {
            let about = || format!("kill {kill}, {slots} slots, traveller {number}");
            traveller.move_on(&stage.world).with_context(about)?;
            traveller.settle().with_context(about)?;
        }
        let status = stage.adds_up()?;
        ensure!(total(&status, "flows") >= 18, "{status}");
        let found = status["slots"].as_array().map(Vec::len);
        ensure!(found == Some(usize::from(slots)), "{status}");
    }
    for one in traffic {
        tell!("{} bytes, both directions", one.end()?);
    }
    let log = log_of(&stage.world, "gateway");
    let (left, came) = (log.matches("moves to another slot").count(), log.matches("resumed=true"));
    tell!("{left} sessions left a slot, {} were resumed", came.count());
    ensure!(left > 0, "no session moved at all");
    ensure!(stage.session()? == session, "another session");
    no_panics(&stage.world)
}

pub(crate) fn twelve_clients_that_move_outlive_an_upgrade() -> Result<()> {
    let mut stage = raise(SLOTS)?;
    let mut travellers = Vec::new();
    for number in 1..=CLIENTS {
        travellers.push(Traveller::set_out(&stage.world, number, echo(), 3)?);
    }
    let pairs = [stage.pair(ORIGIN[0])?, stage.pair(ORIGIN[1])?];
    let mut traffic = Vec::new();
    for (number, pair) in (100..).step_by(10).zip(&pairs) {
        traffic.push(Traffic::begin(pair, number, PACE)?);
    }
    let session = stage.session()?;
    for round in 0..4 {
        let mut asking = Vec::new();
        for (number, traveller) in travellers.iter_mut().enumerate() {
            traveller.speak(5000)?;
            if (number + round) % 2 == 0 {
                traveller.rogue.rebind(&stage.world)?;
                traveller.glance()?;
            } else {
                asking.push(traveller.begin_to_move(&stage.world)?);
            }
        }
        let wifi = stage.world.link("wifi0");
        if round % 2 == 0 {
            wifi.down()?
        } else {
            wifi.up()?
        }
        stage.gateway.upgrade()?;
        drop(asking);
        for (number, traveller) in travellers.iter_mut().enumerate() {
            let about = || format!("round {round}, traveller {number}");
            traveller.move_on(&stage.world).with_context(about)?;
            traveller.speak(5000)?;
            traveller.settle().with_context(about)?;
        }
    }
    let status = stage.adds_up()?;
    ensure!(status["flows"] == 3 * u64::from(CLIENTS) + 2, "{status}");
    for one in traffic {
        tell!("{} bytes, both directions", one.end()?);
    }
    ensure!(stage.session()? == session, "another session");
    no_panics(&stage.world)
}

pub(crate) fn a_connection_of_a_slot_that_is_gone_is_reset_by_another() -> Result<()> {
    let mut stage = raise(SLOTS)?;
    for slots in [1, SLOTS, 2] {
        let mut rogues = Vec::new();
        for number in 1..=CLIENTS {
            // Known since the first round.
            let rogue = match slots {
                1 => Rogue::admitted(&stage.world, &format!("client-{number}"), number)?,
                _ => Rogue::again(&stage.world, number)?,
            };
            rogues.push(rogue);
        }
        edit(&stage.world.gateway_config(), |table| set_slots(table, slots))?;
        stage.gateway.kill()?;
        for (number, mut rogue) in rogues.into_iter().enumerate() {
            // Large enough to be answered.
            rogue.say(&Control::Holding { flows: vec![WireFlow(1); 100], last: true })?;
            rogue.until("it is lost", |rogue| Ok(rogue.lost.is_some()))?;
            let lost = rogue.lost;
            ensure!(lost == Some(Lost::Reset), "{slots} slots, client {number}: {lost:?}");
        }
    }
    no_panics(&stage.world)
}

pub(crate) fn more_slots_than_sockets_are_refused_with_a_reason() -> Result<()> {
    let stage = Stage::raise()?;
    let status = stage.adds_up()?;
    let slots = status["slots"].as_array().context("no slots")?;
    ensure!(slots.len() == 1, "one socket is for one slot: {status}");
    let stage = stage_without_gateway(stage)?;
    edit(&stage.gateway_config(), |table| set_slots(table, 2))?;
    let error = stage.start_gateway().err().context("it starts")?.to_string();
    ensure!(error.contains("`slots = 2` needs 2 sockets of each address"), "{error}");
    Ok(())
}

/// Ends both daemons; the lab stays.
fn stage_without_gateway(stage: Stage) -> Result<whimbrel_tests::lab::World> {
    let Stage { client, gateway, origin, world } = stage;
    drop((client, gateway, origin));
    Ok(world)
}
