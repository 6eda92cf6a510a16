-- +goose Up
CREATE TABLE incarnations (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    branch_id text NOT NULL REFERENCES branches ON DELETE CASCADE,
    number    integer NOT NULL,
    parent    bigint REFERENCES incarnations ON DELETE SET NULL,
    fork_lsn  bigint NOT NULL,
    begin_lsn bigint NOT NULL,
    begin_at  timestamptz NOT NULL,
    UNIQUE (branch_id, number)
);
COMMENT ON TABLE incarnations IS 'the data that a branch has, or had before it was restored in place, and what they descend from';
COMMENT ON COLUMN incarnations.fork_lsn IS 'all before it is the parent''s; a root''s is its template''s';
COMMENT ON COLUMN incarnations.begin_lsn IS 'the first moment that can be reached; behind fork_lsn when the first start had something to set up';
CREATE INDEX incarnations_parent ON incarnations (parent) WHERE parent IS NOT NULL;

CREATE TABLE history_snapshots (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    incarnation bigint NOT NULL REFERENCES incarnations ON DELETE CASCADE,
    volume      text NOT NULL,
    state       text NOT NULL CHECK (state IN ('making', 'kept', 'dropping')),
    reason      text NOT NULL,
    redo_lsn    bigint NOT NULL DEFAULT 0,
    end_lsn     bigint NOT NULL DEFAULT 0,
    taken_at    timestamptz NOT NULL DEFAULT now(),
    took_ms     bigint NOT NULL DEFAULT 0
);
COMMENT ON TABLE history_snapshots IS 'volumes from which, with the WAL behind redo_lsn, any moment at or after end_lsn can be reached';
COMMENT ON COLUMN history_snapshots.volume IS 'inserted before it is made and deleted after it is gone; templates are shared, and nobody''s to delete';
COMMENT ON COLUMN history_snapshots.taken_at IS 'every commit before end_lsn was made by then';
CREATE INDEX history_snapshots_incarnation ON history_snapshots (incarnation, end_lsn);

-- Nobody kept history so far: the first snapshots are still to come.
INSERT INTO incarnations (branch_id, number, fork_lsn, begin_lsn, begin_at)
SELECT id, incarnation, parent_lsn, parent_lsn, coalesce(parent_timestamp, created_at) FROM branches WHERE state = 'ready';
UPDATE incarnations i SET parent = p.id FROM branches b, incarnations p WHERE b.id = i.branch_id AND p.branch_id = b.parent_id;

-- +goose Down
DROP TABLE history_snapshots, incarnations;
