-- +goose Up
ALTER TABLE branches ADD COLUMN ttl_seconds bigint;
COMMENT ON COLUMN branches.ttl_seconds IS 'from when expires_at was set until expires_at';
CREATE INDEX branches_expires ON branches (expires_at) WHERE expires_at IS NOT NULL AND NOT deleting;

-- +goose Down
DROP INDEX branches_expires;
ALTER TABLE branches DROP COLUMN ttl_seconds;
