//! Ethernet around IP. The interfaces of a lab resolve no addresses (`NOARP`), so the only
//! thing a frame has to get right is the receiver's own address.

const HEADER: usize = 14;
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];

/// The router's address in every frame that arrives: locally administered.
const ROUTER: [u8; 6] = [0x02, 0, 0, 0, 0xff, 0xff];

/// The IP packet in a frame.
pub(super) fn unwrap(frame: &[u8]) -> Option<&[u8]> {
    let packet = frame.get(HEADER..)?;
    let kind = frame.get(12..HEADER)?;
    (kind == IPV4 || kind == IPV6).then_some(packet)
}

/// Puts a frame around an IP packet.
pub(super) fn wrap(frame: &mut Vec<u8>, to: [u8; 6], packet: &[u8]) {
    let v6 = packet.first().is_some_and(|first| first >> 4 == 6);
    frame.clear();
    frame.extend_from_slice(&to);
    frame.extend_from_slice(&ROUTER);
    frame.extend_from_slice(if v6 { &IPV6 } else { &IPV4 });
    frame.extend_from_slice(packet);
}
