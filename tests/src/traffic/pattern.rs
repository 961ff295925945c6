//! A numbered stream: word *n* is *n*, big-endian, so that a byte lost, repeated or moved shows.
//! The last word is the complement of the number of bytes before it.

/// Fills a buffer with the stream from an offset on.
pub(super) fn fill(buffer: &mut [u8], offset: u64) {
    let mut index = offset / 8;
    let skip = usize::try_from(offset % 8).expect("below eight");
    let (head, rest) = buffer.split_at_mut(buffer.len().min((8 - skip) % 8));
    if !head.is_empty() {
        let length = head.len();
        head.copy_from_slice(&index.to_be_bytes()[skip..skip + length]);
        index += 1;
    }
    for word in rest.chunks_mut(8) {
        let length = word.len();
        word.copy_from_slice(&index.to_be_bytes()[..length]);
        index += 1;
    }
}

/// The word that ends a stream of this many bytes.
pub(super) fn last_word(bytes: u64) -> [u8; 8] {
    (!bytes).to_be_bytes()
}

/// Checks a stream as it arrives, in pieces of any size.
#[derive(Debug, Default)]
pub(super) struct Check {
    bytes: u64,
    tail: Vec<u8>,
    wrong_at: Option<u64>,
    expected: Vec<u8>,
}

impl Check {
    /// Takes the next piece. The last eight bytes are held back: they may be the last word.
    pub(super) fn take(&mut self, piece: &[u8]) {
        let keep = piece.len().min(8);
        let (now, later) = piece.split_at(piece.len() - keep);
        let room = 8 - keep;
        let settled = self.tail.len().saturating_sub(room);
        let held: Vec<u8> = self.tail.drain(..settled).collect();
        self.compare(&held);
        if !now.is_empty() {
            let held = std::mem::take(&mut self.tail);
            self.compare(&held);
            self.compare(now);
        }
        self.tail.extend_from_slice(later);
    }

    fn compare(&mut self, piece: &[u8]) {
        self.expected.resize(piece.len(), 0);
        fill(&mut self.expected, self.bytes);
        if self.wrong_at.is_none() && self.expected != piece {
            let right = self.expected.iter().zip(piece).take_while(|(one, other)| one == other);
            self.wrong_at = Some(self.bytes + right.count() as u64);
        }
        self.bytes += piece.len() as u64;
    }

    /// Bytes of the stream so far, those held back included.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes + self.tail.len() as u64
    }

    /// Says whether everything up to the end was right.
    pub(super) fn finish(&self) -> Result<(), String> {
        match self.wrong_at {
            Some(offset) => Err(format!("the byte at offset {offset} is wrong")),
            None if self.tail == last_word(self.bytes) => Ok(()),
            None => Err(format!("the stream ended short, after {} bytes", self.bytes())),
        }
    }

    /// Whether everything so far was right, whatever is still to come.
    pub(super) fn is_right_so_far(&self) -> bool {
        self.wrong_at.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(bytes: usize) -> Vec<u8> {
        let mut stream = vec![0; bytes];
        fill(&mut stream, 0);
        stream.extend_from_slice(&last_word(bytes as u64));
        stream
    }

    fn check(stream: &[u8], piece: usize) -> Check {
        let mut check = Check::default();
        stream.chunks(piece).for_each(|piece| check.take(piece));
        check
    }

    #[test]
    fn a_whole_stream_is_right_in_pieces_of_any_size() {
        for bytes in [0, 1, 7, 8, 9, 1000, 1003] {
            let stream = stream(bytes);
            for piece in 1..40 {
                assert_eq!(check(&stream, piece).finish(), Ok(()), "{bytes} by {piece}");
            }
        }
    }

    #[test]
    fn whatever_is_lost_repeated_or_changed_shows() {
        let whole = stream(1000);
        for at in [0, 5, 500, 999, 1003, 1007] {
            let (head, tail) = whole.split_at(at);
            let lost = [head, &tail[1..]].concat();
            let repeated = [head, &tail[..1], tail].concat();
            let mut changed = whole.clone();
            changed[at] ^= 1;
            for broken in [lost, repeated, changed, head.to_vec()] {
                assert!(check(&broken, 64).finish().is_err(), "at {at}");
            }
        }
    }

    #[test]
    fn the_first_wrong_byte_is_named() {
        let mut broken = stream(1000);
        broken[317] ^= 0x80;
        let outcome = check(&broken, 100).finish();
        assert_eq!(outcome, Err("the byte at offset 317 is wrong".into()));
    }
}
