//! The packets of `packets.txt`.

pub struct Golden {
    /// Header and case, for messages.
    pub name: String,
    pub frame: Vec<u8>,
    /// `= facts` or `! reason`.
    pub expected: String,
}

pub fn goldens() -> Vec<Golden> {
    let text = include_str!("packets.txt");
    let (mut section, mut name, mut frame) = (String::new(), String::new(), Vec::new());
    let mut goldens = Vec::new();
    for line in text.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            section = title.to_string();
        } else if let Some(title) = line.strip_prefix("# ") {
            name = format!("{section}: {title}");
        } else if let Some(hex) = line.strip_prefix("  ") {
            let bytes = (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16));
            frame.extend(bytes.map(|b| b.expect("hexadecimal")));
        } else if line.starts_with(['=', '!']) {
            let frame = std::mem::take(&mut frame);
            goldens.push(Golden { name: name.clone(), frame, expected: line.to_string() });
        }
    }
    assert_eq!(goldens.len(), text.lines().filter(|l| l.starts_with("# ")).count());
    assert!(goldens.len() > 100, "only {} packets", goldens.len());
    goldens
}
