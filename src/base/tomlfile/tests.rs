//! Faults of documents, each at its place.

use super::*;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Doc {
    count: Option<Spanned<i64>>,
    mode: Option<Mode>,
    list: Vec<i64>,
    item: Named<Item>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    Native,
    Generic,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Item {
    size: Option<Spanned<Leaf<Even>>>,
    many: Option<OneOrMany<Even>>,
}

#[derive(Debug, PartialEq)]
struct Even(i64);

impl Atom for Even {
    const EXPECTED: &'static str = "an even number";
    fn from_number(n: i64) -> Result<Even, String> {
        if n % 2 == 0 { Ok(Even(n)) } else { Err(format!("{n} is odd")) }
    }
}

fn doc(text: &str) -> (Option<Reading<Doc>>, String) {
    let mut out = Diagnostics::default();
    let reading = read(&Source::new("t", text), &mut out);
    out.sort();
    (reading, out.to_string())
}

#[test]
fn tables_keep_the_files_order_and_their_places() {
    let (r, faults) = doc("count = 3\n[item.zoo]\nsize = 2\n[item.ant]\nmany = [4, 6]\n");
    assert_eq!(faults, "");
    let items = r.expect("valid").value.item.0;
    assert_eq!(items[0].0.get_ref(), "zoo");
    assert_eq!(items[0].0.span(), 16..19);
    assert_eq!(items[0].1.span().start, 10, "a table is where its header is");
    assert_eq!(items[1].1.get_ref().many.as_ref().expect("given").0, [Even(4), Even(6)]);
}

#[test]
fn every_fault_is_told() {
    let (r, faults) = doc("cuont = 3\nmode = \"natvie\"\nlist = [1, \"a\", true]\n\
         [item.a]\nsize = 3\nmany = [2, 5]\n[item.b]\nsize = \"x\"\nwidth = 1\n");
    assert_eq!(
        faults,
        "t:1:1: error: unknown key `cuont`; did you mean `count`?\n\
         t:2:8: error: unknown value `natvie`; did you mean `native`?\n\
         t:3:12: error: a whole number is expected here, not the string \"a\"\n\
         t:3:17: error: a whole number is expected here, not true\n\
         t:5:8: error: 3 is odd\n\
         t:6:12: error: 5 is odd\n\
         t:8:8: error: an even number is expected here, not the string \"x\"\n\
         t:9:1: error: unknown key `width`; known here: `size`, `many`"
    );
    let r = r.expect("readable without what is wrong");
    let (a, b) = (r.value.item.0[0].1.span(), r.value.item.0[1].1.span());
    assert!(r.faulty.contains(&a, "size") && r.faulty.contains(&a, "many"));
    assert!(r.faulty.contains(&b, "size") && !r.faulty.contains(&b, "many"));
    assert!(r.faulty.contains(&ROOT, "list") && !r.faulty.contains(&ROOT, "item"));
}

#[test]
fn tables_where_values_belong() {
    assert_eq!(doc("[count]\n").1, "t:1:1: error: a whole number is expected here, not a table");
    let text = "[count.deep]\nx = 1\n";
    assert_eq!(doc(text).1, "t:1:2: error: a whole number is expected here, not a table");
    assert_eq!(doc("item = 3\n").1, "t:1:8: error: a table is expected here, not the number 3");
    let text = "[item]\na = 7\n";
    assert_eq!(doc(text).1, "t:2:5: error: a table is expected here, not the number 7");
}

#[test]
fn text_that_is_no_toml() {
    let (r, faults) = doc("count = \n[item\n");
    assert!(r.is_none());
    assert!(faults.starts_with("t:1:9: error: "), "{faults}");
    let twice = "t:2:1: error: `count` is given a second time";
    assert_eq!(doc("count = 1\ncount = 2\n").1, twice);
}

#[test]
fn what_is_set_takes_the_place_of_what_is_written() {
    let text = "count = 3\n[item.a]\nsize = 2\n[item.b]\nsize = 1\n";
    let read_with = |sets: &[&str]| {
        let mut source = Source::new("t", text);
        sets.iter().for_each(|set| source.set(set, set.to_string()));
        let mut out = Diagnostics::default();
        let reading = read::<Doc>(&source, &mut out);
        (reading, out.to_string())
    };
    let (r, faults) = read_with(&["item.b.size=8", "count=4", "item.c.many=[2]"]);
    assert_eq!(faults, "");
    let doc = r.expect("valid").value;
    assert_eq!(doc.count.map(Spanned::into_inner), Some(4));
    let sizes: Vec<_> = doc.item.0.iter().map(|(key, _)| key.get_ref().as_str()).collect();
    assert_eq!(sizes, ["a", "b", "c"]);
    assert_eq!(doc.item.0[1].1.get_ref().size.as_ref().map(|s| s.get_ref().0.0), Some(8));
    let (_, faults) = read_with(&["item.a.size=7", "cuont=1", "count = ["]);
    assert!(faults.contains("--set item.a.size=7: error: 7 is odd"), "{faults}");
    let unknown = "--set cuont=1: error: unknown key `cuont`; did you mean `count`?";
    assert!(faults.contains(unknown), "{faults}");
    assert!(faults.contains("--set count = [: error: "), "{faults}");
    assert!(faults.contains("t:5:8: error: 1 is odd"), "{faults}");
}

#[test]
fn more_faults_than_anybody_reads() {
    let text: String = (0..FAULTS_MAX + 5).map(|i| format!("x{i} = 1\n")).collect();
    let mut out = Diagnostics::default();
    assert!(read::<Doc>(&Source::new("t", text), &mut out).is_none());
    assert_eq!(out.len(), FAULTS_MAX + 1);
    assert!(out.to_string().ends_with("t: error: more than 100 errors: correct these first"));
}
