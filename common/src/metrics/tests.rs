use super::*;

#[test]
fn a_text_is_as_prometheus_reads_it() {
    let mut text = Exposition::new("bird");
    text.counter("steps_total", "Steps taken.", 3);
    text.counters("falls_total", "Falls.", "by", &[("wind", 1), ("cat", 0)]);
    text.gauge("height_meters", "Height.", 1.5);
    text.state("mood", "Mood.", &["calm", "restless"], &"restless");
    let mut pauses = Histogram::default();
    for millis in [3, 10, 11, 250, 700_000] {
        pauses.observe(Duration::from_millis(millis));
    }
    text.histogram("pause_seconds", "Pauses.", &pauses);
    text.process(&Process {
        resident: 4096,
        cpu: Duration::from_millis(1500),
        descriptors: 7,
        started: Duration::from_millis(1_700_000_000_250),
    });
    let expected = "\
# HELP bird_steps_total Steps taken.
# TYPE bird_steps_total counter
bird_steps_total 3
# HELP bird_falls_total Falls.
# TYPE bird_falls_total counter
bird_falls_total{by=\"wind\"} 1
bird_falls_total{by=\"cat\"} 0
# HELP bird_height_meters Height.
# TYPE bird_height_meters gauge
bird_height_meters 1.5
# HELP bird_mood Mood.
# TYPE bird_mood gauge
bird_mood{state=\"calm\"} 0
bird_mood{state=\"restless\"} 1
# HELP bird_pause_seconds Pauses.
# TYPE bird_pause_seconds histogram
bird_pause_seconds_bucket{le=\"0.01\"} 2
bird_pause_seconds_bucket{le=\"0.025\"} 3
bird_pause_seconds_bucket{le=\"0.05\"} 3
bird_pause_seconds_bucket{le=\"0.1\"} 3
bird_pause_seconds_bucket{le=\"0.2\"} 3
bird_pause_seconds_bucket{le=\"0.3\"} 4
bird_pause_seconds_bucket{le=\"0.5\"} 4
bird_pause_seconds_bucket{le=\"1\"} 4
bird_pause_seconds_bucket{le=\"5\"} 4
bird_pause_seconds_bucket{le=\"30\"} 4
bird_pause_seconds_bucket{le=\"300\"} 4
bird_pause_seconds_bucket{le=\"+Inf\"} 5
bird_pause_seconds_sum 700.274
bird_pause_seconds_count 5
# HELP process_resident_memory_bytes Memory in use.
# TYPE process_resident_memory_bytes gauge
process_resident_memory_bytes 4096
# HELP process_cpu_seconds_total Processor time used.
# TYPE process_cpu_seconds_total counter
process_cpu_seconds_total 1.5
# HELP process_open_fds Open file descriptors.
# TYPE process_open_fds gauge
process_open_fds 7
# HELP process_start_time_seconds When it started, since 1970.
# TYPE process_start_time_seconds gauge
process_start_time_seconds 1700000000.25
";
    assert_eq!(text.finish(), expected);
}

#[test]
fn labels_and_help_cannot_break_the_text() {
    let mut text = Exposition::new("bird");
    let mut family = text.family("nests", Kind::Gauge, "Two\nlines \\ and a slash.");
    family.sample(&[("name", "a \"b\"\nc\\d"), ("tree", "oak")], 1.0);
    let expected = "\
# HELP bird_nests Two\\nlines \\\\ and a slash.
# TYPE bird_nests gauge
bird_nests{name=\"a \\\"b\\\"\\nc\\\\d\",tree=\"oak\"} 1
";
    assert_eq!(text.finish(), expected);
}

#[test]
fn a_tally_tells_of_what_never_happened_too() {
    let mut tally = Tally::default();
    tally.count("b");
    tally.count("x");
    let mut other = Tally::default();
    other.count("b");
    tally.add(&other);
    let expected = [("a", 0), ("b", 2), ("x", 1)].map(|(name, count)| (name.to_owned(), count));
    assert_eq!(tally.with(&["b", "a"]), expected);
}

#[test]
fn large_counts_are_written_in_full() {
    let mut text = Exposition::new("bird");
    text.counter("bytes_total", "Bytes.", 123_456_789_012_345);
    assert!(text.finish().ends_with("bird_bytes_total 123456789012345\n"));
}

#[test]
fn histograms_of_several_owners_are_one() {
    let (mut own, mut both) = ([Histogram::default(); 2], Histogram::default());
    for (millis, owner) in [(7, 0), (90, 1), (400_000, 1)] {
        own[owner].observe(Duration::from_millis(millis));
        both.observe(Duration::from_millis(millis));
    }
    let [mut first, second] = own;
    first.add(&second);
    assert_eq!(first, both);
}
