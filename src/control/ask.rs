//! How others of the process ask the control loop: the socket's server and the metrics page.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::pools::DrainTarget;
use super::view::{DifferenceView, DrainView, FlowsView, Overview, ReloadView};

/// Questions that wait for the control loop at most.
const WAITING_MAX: usize = 64;

/// A question and where its answer goes. An answer that nobody awaits any more is dropped.
#[derive(Debug)]
pub enum Ask {
    Overview(oneshot::Sender<Overview>),
    Flows {
        limit: usize,
        reply: oneshot::Sender<FlowsView>,
    },
    /// For so long at first, where it is to be confirmed.
    Reload {
        confirm: Option<Duration>,
        reply: oneshot::Sender<Result<ReloadView, Refusal>>,
    },
    /// What a reload would change.
    Compare(oneshot::Sender<Result<DifferenceView, Refusal>>),
    /// Keeps the configuration that is on trial.
    Confirm(oneshot::Sender<Result<(), Refusal>>),
    /// Drains, or ends it; answered with the flows that are left.
    Drain {
        target: DrainTarget,
        /// Cuts the flows that are left.
        flush: bool,
        drained: bool,
        reply: oneshot::Sender<Result<DrainView, Refusal>>,
    },
    /// How many flows are left, and whether it is still drained.
    Drained {
        target: DrainTarget,
        reply: oneshot::Sender<Result<DrainView, Refusal>>,
    },
    /// Answered once the workers have drained and the interfaces are released.
    Stop(oneshot::Sender<()>),
}

/// Why a configuration was not taken over, for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// One sentence or several lines.
    pub words: String,
    /// The configuration is at fault, not the appliance.
    pub bad_config: bool,
}

/// The control loop has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the appliance is shutting down")]
pub struct Gone;

/// The asking end; cheap to copy.
#[derive(Clone, Debug)]
pub struct Asker {
    to: mpsc::Sender<Ask>,
}

/// The two ends.
pub fn channel() -> (Asker, mpsc::Receiver<Ask>) {
    let (to, from) = mpsc::channel(WAITING_MAX);
    (Asker { to }, from)
}

impl Asker {
    /// # Errors
    /// [`Gone`].
    pub async fn overview(&self) -> Result<Overview, Gone> {
        self.ask(Ask::Overview).await
    }

    /// Lists `limit` flows at most.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn flows(&self, limit: usize) -> Result<FlowsView, Gone> {
        self.ask(|reply| Ask::Flows { limit, reply }).await
    }

    /// Loads the configuration anew; within, why it was refused. Where it is to be confirmed, the
    /// one before comes back unless that happens in time.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn reload(
        &self,
        confirm: Option<Duration>,
    ) -> Result<Result<ReloadView, Refusal>, Gone> {
        self.ask(|reply| Ask::Reload { confirm, reply }).await
    }

    /// Loads the configuration anew and tells what a reload would change; within, why it can't be
    /// read.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn compare(&self) -> Result<Result<DifferenceView, Refusal>, Gone> {
        self.ask(Ask::Compare).await
    }

    /// Keeps the configuration that is on trial; within, that there is none.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn confirm(&self) -> Result<Result<(), Refusal>, Gone> {
        self.ask(Ask::Confirm).await
    }

    /// Gives something no new flows, or new flows again, and cuts those that are left if `flush`
    /// says so; within, why that can't be.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn drain(
        &self,
        target: DrainTarget,
        drained: bool,
        flush: bool,
    ) -> Result<Result<DrainView, Refusal>, Gone> {
        self.ask(|reply| Ask::Drain { target, drained, flush, reply }).await
    }

    /// How far that is, without changing anything; within, why that can't be told.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn drained(&self, target: DrainTarget) -> Result<Result<DrainView, Refusal>, Gone> {
        self.ask(|reply| Ask::Drained { target, reply }).await
    }

    /// Drains and ends; returns when the interfaces are released.
    ///
    /// # Errors
    /// [`Gone`]: it is ending already.
    pub async fn stop(&self) -> Result<(), Gone> {
        self.ask(Ask::Stop).await
    }

    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, Gone> {
        let (reply, answer) = oneshot::channel();
        self.to.send(question(reply)).await.map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }
}
