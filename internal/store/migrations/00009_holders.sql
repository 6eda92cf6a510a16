-- +goose Up
CREATE TABLE holders (
    project_id text PRIMARY KEY REFERENCES projects ON DELETE CASCADE,
    server     bigint NOT NULL,
    ready      boolean NOT NULL
);
COMMENT ON TABLE holders IS 'which of the servers of a data directory works on a project: it runs its operations and watches its computes';
COMMENT ON COLUMN holders.ready IS 'the server has taken over what an earlier one left running';
CREATE INDEX holders_server ON holders (server);

-- +goose Down
DROP TABLE holders;
