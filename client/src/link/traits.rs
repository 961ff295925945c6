//! What the kernel knows of an interface beyond netlink (sysfs-class-net).

use std::path::Path;

use whimbrel_client_core::links::Traits;

const FOLDER: &str = "/sys/class/net";

/// The traits of an interface; none where sysfs shows another network namespace than this one.
pub(super) fn read(name: &str, index: u32, kind: Option<String>) -> Traits {
    read_in(Path::new(FOLDER), name, index, kind)
}

fn read_in(folder: &Path, name: &str, index: u32, kind: Option<String>) -> Traits {
    let folder = folder.join(name);
    let text = |file: &str| std::fs::read_to_string(folder.join(file)).unwrap_or_default();
    if text("ifindex").trim() != index.to_string() {
        return Traits { kind, ..Traits::default() };
    }
    let uevent = text("uevent");
    let devtype = uevent.lines().find_map(|line| line.strip_prefix("DEVTYPE="));
    let driver = std::fs::read_link(folder.join("device/driver")).ok();
    let driver = driver.as_deref().and_then(Path::file_name);
    let first = text("address").get(..2).and_then(|octet| u8::from_str_radix(octet, 16).ok());
    Traits {
        wireless: ["wireless", "phy80211"].iter().any(|file| folder.join(file).exists()),
        devtype: devtype.map(str::to_owned),
        driver: driver.map(|driver| driver.to_string_lossy().into_owned()),
        kind,
        // The second lowest bit of the first octet (IEEE 802 §8.2).
        local_address: first.is_some_and(|octet| octet & 2 != 0),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use whimbrel_client_core::links::Class;

    use super::*;

    /// A folder as the kernel shows it for a phone on USB.
    #[test]
    fn a_phone_is_read_as_the_kernel_shows_it() {
        let number = u64::from_ne_bytes(whimbrel_host::random::bytes().unwrap());
        let root = std::env::temp_dir().join(format!("whimbrel-sysfs-{number:016x}"));
        let phone = root.join("usb0");
        std::fs::create_dir_all(phone.join("device")).unwrap();
        std::fs::write(phone.join("ifindex"), "7\n").unwrap();
        std::fs::write(phone.join("uevent"), "INTERFACE=usb0\nIFINDEX=7\n").unwrap();
        std::fs::write(phone.join("address"), "6e:1f:aa:00:11:22\n").unwrap();
        symlink("/sys/bus/usb/drivers/cdc_ether", phone.join("device/driver")).unwrap();
        let traits = read_in(&root, "usb0", 7, None);
        assert_eq!(traits.driver.as_deref(), Some("cdc_ether"));
        assert_eq!(Class::of(&traits), Class::Tether);
        let foreign = read_in(&root, "usb0", 8, None);
        assert_eq!(foreign, Traits::default(), "another namespace's interface of that name");

        std::fs::write(phone.join("uevent"), "DEVTYPE=wwan\nINTERFACE=usb0\n").unwrap();
        assert_eq!(Class::of(&read_in(&root, "usb0", 7, None)), Class::Cellular);
        std::fs::remove_dir_all(&root).unwrap();
    }
}
