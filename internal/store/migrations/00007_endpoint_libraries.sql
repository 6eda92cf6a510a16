-- +goose Up
ALTER TABLE endpoints ADD COLUMN preload jsonb;
COMMENT ON COLUMN endpoints.preload IS 'libraries of its own; null: those of the project';

-- +goose Down
ALTER TABLE endpoints DROP COLUMN preload;
