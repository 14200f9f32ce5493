//! Against a real server.

mod catalog;
mod connections;
mod preflight;
mod replication;
mod snapshot;

/// Everything can be held by a task of a runtime with many threads, across its waits.
#[test]
fn connections_can_move_between_threads() {
    fn movable<T: Send>(_: impl FnOnce() -> T) {}
    let settings = || crate::source::lab::settings("postgres://u@h/d");
    movable(|| async move { crate::source::session::Session::connect(&settings()).await });
    movable(|| async move { crate::source::snapshot::SnapshotHolder::import(&settings(), "x").await?.check().await });
    movable(|| async move {
        let connection = crate::source::replication::ReplicationConnection::connect(&settings()).await?;
        let options = crate::source::replication::StreamOptions {
            slot: String::new(),
            publication: String::new(),
            from: crate::lsn::Lsn::ZERO,
            binary: true,
            streaming: false,
        };
        let mut stream = connection.start(&options).await?;
        stream.next().await?;
        stream.close().await
    });
}
