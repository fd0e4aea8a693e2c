//! A backend that does not take its connection: the next one, which goes on with what is known of
//! the client. What it said was read, decided and counted once, and is not again.

use super::{Link, Splice};
use crate::flow::FlowTable;
use crate::forward::splice::Out;
use crate::graph::stages::inspect::{FLOWS_MAX, Inspect};
use crate::graph::{Cx, REPLIES_MAX};
use crate::packet::{ClassId, FlowKey, FlowRef};

/// What a flow toward a backend leaves to the one toward the next.
#[derive(Clone, Copy, Debug)]
pub(super) struct Course {
    at: FlowRef,
    key: FlowKey,
    /// The place of its note.
    note: u32,
    inspection: u16,
    first_byte: Option<u32>,
    pub class: ClassId,
    treatment: u8,
    /// Held.
    steps: u8,
}

impl Splice {
    /// The backend does not take it: the next.
    pub(super) fn try_next(&mut self, cx: &mut Cx<'_>, slot: usize) {
        cx.counters.backends_unwilling += 1;
        let flow = self.bound[slot].flow.take();
        let course = flow.and_then(|flow| {
            cx.flows.serving().failed(cx.flows.details(flow).backend);
            self.links[flow.0 as usize] = Link::default();
            let was_followed = self.speech.may_ask(slot) && !self.bound[slot].unfollowed;
            let course = was_followed.then(|| Course::of(cx.flows, flow));
            cx.flows.remove(flow);
            course
        });
        let mut out = Out::new(REPLIES_MAX - cx.replies.len());
        let is_refused = course.is_some_and(|course| course.class.is_refused());
        let opened = !is_refused && self.open_next(cx, slot, &mut out).is_some();
        match (course, self.bound[slot].flow.filter(|_| opened)) {
            (Some(course), Some(flow)) => {
                self.bound[slot].unfollowed = false;
                course.go_on(cx, flow);
            }
            (Some(course), None) => {
                cx.flows.steps_mut().release(course.steps);
                self.leave((course.key, course.inspection));
            }
            (None, _) => {}
        }
        if !opened {
            out.push(self.bound[slot].binding.reset_client(&self.held, slot));
            cx.counters.bindings_unserved += 1;
        }
        self.send_all(cx, slot, &out);
        match opened {
            true => self.arm(slot),
            false => self.release(slot),
        }
    }

    /// Forgets a flow whose connection has ended, for the client's next one.
    pub(super) fn forget_ended(&mut self, cx: &mut Cx<'_>, flow: FlowRef) {
        let known = cx.flows.get(flow);
        let of_inspector = (known.client_key(), known.inspection);
        cx.flows.remove(flow);
        self.leave(of_inspector);
    }

    /// The inspector may still keep a place for a flow that is gone. More than there is room for
    /// are found by its own search.
    fn leave(&mut self, (key, inspection): (FlowKey, u16)) {
        if usize::from(inspection) < FLOWS_MAX && self.left.len() < self.left.capacity() {
            self.left.push((key, inspection));
        }
    }

    /// Gives such places back, before others are taken.
    pub(super) fn give_back(&mut self, inspect: &mut Inspect) {
        for (key, inspection) in self.left.drain(..) {
            inspect.forget_client(&key, inspection);
        }
    }
}

impl Course {
    /// Of a flow that is about to go.
    fn of(flows: &mut FlowTable, at: FlowRef) -> Course {
        let (flow, details) = (flows.get(at), flows.details(at));
        let course = Course {
            at,
            key: flow.client_key(),
            note: details.note,
            inspection: flow.inspection,
            first_byte: details.first_byte(),
            class: flow.class,
            treatment: flow.treatment,
            steps: flow.steps,
        };
        flows.steps_mut().hold(course.steps);
        course
    }

    /// The flow that takes its place: the last request that was read says what is done with it, not
    /// the one that its backend was chosen by.
    fn go_on(self, cx: &mut Cx<'_>, flow: FlowRef) {
        cx.flows.set_steps(flow, self.steps);
        let known = cx.flows.get_mut(flow);
        (known.class, known.treatment) = (self.class, self.treatment);
        known.inspection = self.inspection;
        let details = cx.flows.details_mut(flow);
        if let Some(first_byte) = self.first_byte {
            details.begin_at(first_byte);
        }
        cx.names.notes.pass_on(self.at, self.note, (flow, details));
    }
}
