//! Values that only meters have.

use super::atoms::Dscp;
use crate::base::tomlfile::Atom;
use crate::qos::meters::Action;

/// What becomes of packets of a colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ColourAction(pub Action);

impl Atom for ColourAction {
    const EXPECTED: &'static str = "\"pass\", \"drop\", \"precedence\", or a DSCP such as \"af12\"";

    fn from_text(text: &str) -> Result<ColourAction, String> {
        Ok(ColourAction(match text {
            "pass" => Action::Pass,
            "drop" => Action::Drop,
            "precedence" => Action::Precedence,
            _ => match Dscp::from_text(text) {
                Ok(dscp) => Action::Dscp(dscp.0),
                Err(_) => return Err(format!("`{text}` is not {}", Self::EXPECTED)),
            },
        }))
    }

    fn from_number(number: i64) -> Result<ColourAction, String> {
        Dscp::from_number(number).map(|dscp| ColourAction(Action::Dscp(dscp.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions() {
        let read = |text| ColourAction::from_text(text).map(|a| a.0);
        assert_eq!(read("pass"), Ok(Action::Pass));
        assert_eq!(read("drop"), Ok(Action::Drop));
        assert_eq!(read("precedence"), Ok(Action::Precedence));
        assert_eq!(read("AF12"), Ok(Action::Dscp(12)));
        assert!(read("dorp").is_err());
        assert_eq!(ColourAction::from_number(46).map(|a| a.0), Ok(Action::Dscp(46)));
        assert!(ColourAction::from_number(64).is_err());
    }
}
