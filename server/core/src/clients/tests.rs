use super::*;

const LAPTOP: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
const PHONE: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

fn clients(text: &str) -> Clients {
    text.parse().unwrap()
}

fn error(text: &str) -> String {
    text.parse::<Clients>().unwrap_err().to_string()
}

fn client(name: &str, key: &str) -> Client {
    Client { name: name.parse().unwrap(), key: key.parse().unwrap(), options: Options::default() }
}

#[test]
fn comments_and_order_survive_edits() {
    let text = format!("# the office\nlaptop {LAPTOP} flows=500 dials=7\n\n  # end\n");
    let mut file = clients(&text);
    assert_eq!(file.to_string(), text);
    file.add(client("phone", PHONE)).unwrap();
    assert_eq!(file.to_string(), format!("{text}phone {PHONE}\n"));
    assert_eq!(file.remove(&"phone".parse().unwrap()), Some(client("phone", PHONE)));
    assert_eq!(file.remove(&"phone".parse().unwrap()), None);
    assert_eq!(file.to_string(), text);
}

#[test]
fn clients_are_found_by_key_and_name() {
    let file = clients(&format!("laptop\t{LAPTOP}   flows=500 # Anna's\n"));
    let found = file.by_key(&LAPTOP.parse().unwrap()).unwrap();
    assert_eq!(found.options, Options { flows: Some(500), dials: None });
    assert_eq!(file.by_name(&"laptop".parse().unwrap()), Some(found));
    assert_eq!(file.by_key(&PHONE.parse().unwrap()), None);
}

#[test]
fn names_and_keys_are_unique() {
    let mut file = clients(&format!("laptop {LAPTOP}\n"));
    assert_eq!(
        file.add(client("laptop", PHONE)).unwrap_err().to_string(),
        "there is a client laptop already; revoke it first, or use another name"
    );
    assert_eq!(
        file.add(client("phone", LAPTOP)).unwrap_err().to_string(),
        "this key is known already, as client laptop"
    );
}

#[test]
fn errors_name_the_line_and_the_fault() {
    assert_eq!(
        error(&format!("# x\nlap/top {LAPTOP}\n")),
        "line 2 of the clients file: \"lap/top\" is not a client name: \
         use 1 to 64 of A-Z a-z 0-9 . _ and -, starting with a letter or digit"
    );
    assert_eq!(
        error("laptop\n"),
        "line 1 of the clients file: the second word is not a public key; \
         write: name key [option…]"
    );
    for option in ["flow=5", "flows", "flows=0", "flows=1 flows=2", "dials=1000001"] {
        let shown = option.split(' ').next_back().unwrap();
        assert_eq!(
            error(&format!("laptop {LAPTOP} {option}\n")),
            format!(
                "line 1 of the clients file: unknown option {shown:?}; \
                 write flows=N or dials=N, N from 1 to 1000000"
            )
        );
    }
    assert_eq!(
        error(&format!("laptop {LAPTOP}\nlaptop {PHONE}\n")),
        "line 2 of the clients file: there is another client laptop above"
    );
    assert_eq!(
        error(&format!("laptop {LAPTOP}\nphone {LAPTOP}\n")),
        "line 2 of the clients file: the key belongs to laptop above; \
         every client has a key of its own"
    );
}

#[test]
fn errors_are_bounded_however_long_the_word() {
    let word = "x".repeat(10_000);
    for text in [word.clone(), format!("laptop {word}"), format!("laptop {LAPTOP} {word}=1")] {
        assert!(error(&text).len() < 300, "{}", error(&text).len());
    }
}
