-- +goose Up
-- fillfactor: what runs is updated every few seconds, in place.
CREATE TABLE usage (
    project_id         text NOT NULL,
    branch_id          text NOT NULL,
    grain              text NOT NULL CHECK (grain IN ('hour', 'day', 'month')),
    start              timestamptz NOT NULL,
    active_us          bigint NOT NULL DEFAULT 0,
    compute_us         bigint NOT NULL DEFAULT 0,
    written_bytes      bigint NOT NULL DEFAULT 0,
    transfer_bytes     bigint NOT NULL DEFAULT 0,
    root_byte_hours    bigint NOT NULL DEFAULT 0,
    child_byte_hours   bigint NOT NULL DEFAULT 0,
    history_byte_hours bigint NOT NULL DEFAULT 0,
    logical_byte_hours bigint NOT NULL DEFAULT 0,
    storage_bytes      bigint NOT NULL DEFAULT 0,
    logical_bytes      bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (project_id, branch_id, grain, start)
) WITH (fillfactor = 70);
COMMENT ON TABLE usage IS 'what was used in each hour, day and month (UTC); no foreign keys: what a branch used outlives it, and counting never waits for a project''s row';
COMMENT ON COLUMN usage.branch_id IS 'empty: the whole project, deleted branches included';
COMMENT ON COLUMN usage.compute_us IS 'compute units times microseconds';
COMMENT ON COLUMN usage.root_byte_hours IS 'the largest size seen in each hour, added up; logical and history sizes likewise';
COMMENT ON COLUMN usage.storage_bytes IS 'as last seen in the time frame; kept for projects only, like logical_bytes';
CREATE INDEX usage_start ON usage (grain, start);

CREATE TABLE compute_meters (
    endpoint_id text PRIMARY KEY,
    project_id  text NOT NULL,
    branch_id   text NOT NULL,
    run         timestamptz NOT NULL,
    seen_at     timestamptz NOT NULL
) WITH (fillfactor = 50);
COMMENT ON TABLE compute_meters IS 'up to when the time of an endpoint''s compute is counted; run is the start of its process';

CREATE TABLE branch_meters (
    branch_id     text PRIMARY KEY REFERENCES branches ON DELETE CASCADE,
    project_id    text NOT NULL,
    since         timestamptz NOT NULL DEFAULT now(),
    lsn           bigint NOT NULL,
    written       bigint NOT NULL DEFAULT 0,
    logical       bigint NOT NULL DEFAULT 0,
    data          bigint NOT NULL DEFAULT 0,
    history       bigint NOT NULL DEFAULT 0,
    hour          timestamptz NOT NULL,
    hour_logical  bigint NOT NULL DEFAULT 0,
    hour_data     bigint NOT NULL DEFAULT 0,
    hour_history  bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
COMMENT ON TABLE branch_meters IS 'up to where a branch''s WAL is counted, and the sizes that go into its byte-hours';
COMMENT ON COLUMN branch_meters.since IS 'when lsn was set to where the branch''s own WAL begins: what was seen before does not count';
COMMENT ON COLUMN branch_meters.written IS 'bytes of WAL since then';
COMMENT ON COLUMN branch_meters.data IS 'what the branch adds to its project: all of a root''s data, of a child''s at most what was written since the fork';
COMMENT ON COLUMN branch_meters.hour IS 'the last hour whose byte-hours are counted, with the largest sizes seen in it';
CREATE INDEX branch_meters_project ON branch_meters (project_id);
CREATE INDEX branch_meters_hour ON branch_meters (hour);

-- +goose Down
DROP TABLE branch_meters, compute_meters, usage;
