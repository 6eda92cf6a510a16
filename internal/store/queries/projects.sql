-- name: InsertProject :one
INSERT INTO projects (id, org_id, created_by, name, region_id, pg_version, provisioner, default_min_cu, default_max_cu,
    default_suspend, default_pg_settings, settings, store_passwords, history_retention)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) RETURNING *;

-- name: GetProject :one
SELECT * FROM projects WHERE id = $1 AND NOT deleting;

-- name: LockProject :one
SELECT * FROM projects WHERE id = $1 AND NOT deleting FOR UPDATE;

-- name: ShareProject :one
SELECT * FROM projects WHERE id = $1 AND NOT deleting FOR KEY SHARE;

-- name: ListProjects :many
SELECT * FROM projects
WHERE NOT deleting AND org_id = ANY(@org_ids::text[]) AND id > @after::text
  AND (@project_id::text = '' OR id = @project_id::text)
  AND (@search::text = '' OR position(lower(@search::text) IN lower(name)) > 0 OR position(lower(@search::text) IN id) > 0)
ORDER BY id LIMIT @max_rows;

-- name: UpdateProject :one
UPDATE projects SET name = $2, default_min_cu = $3, default_max_cu = $4, default_suspend = $5, default_pg_settings = $6,
    settings = $7, history_retention = $8, updated_at = now()
WHERE id = $1 RETURNING *;

-- name: TouchProjectActivity :exec
UPDATE projects SET compute_last_active = @at::timestamptz
WHERE id = $1 AND (compute_last_active IS NULL OR compute_last_active < @unless_after::timestamptz);

-- name: MarkProjectDeleting :exec
UPDATE projects SET deleting = true, updated_at = now() WHERE id = $1;

-- name: DeleteProjectIfEmpty :execrows
DELETE FROM projects p WHERE p.id = $1 AND p.deleting AND NOT EXISTS (SELECT FROM branches b WHERE b.project_id = p.id);

-- name: AwaitProject :exec
SELECT id FROM projects WHERE id = $1 FOR NO KEY UPDATE;
