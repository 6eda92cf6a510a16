-- +goose Up
CREATE TABLE answers (
    key_id     bigint NOT NULL,
    key        text NOT NULL,
    request    bytea NOT NULL,
    answer     bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (key_id, key)
);
COMMENT ON TABLE answers IS 'what calls with an Idempotency-Key were answered, written with what they made';
COMMENT ON COLUMN answers.key_id IS 'the API key that the call was made with';
COMMENT ON COLUMN answers.request IS 'SHA-256 of the call';
COMMENT ON COLUMN answers.answer IS 'encrypted with the API key''s secret, which the server does not keep';
CREATE INDEX answers_created ON answers (created_at);
CREATE INDEX operations_created ON operations USING brin (created_at);

-- +goose Down
DROP INDEX operations_created;
DROP TABLE answers;
