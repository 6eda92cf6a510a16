-- name: InsertBranch :one
INSERT INTO branches (id, project_id, parent_id, parent_lsn, parent_timestamp, name, state, pending_state, is_default, protected,
    init_source, expires_at, created_by, created_by_name, annotation, annotated_at, volume_id, promote, setup, logical_size,
    ttl_seconds)
VALUES ($1, $2, sqlc.narg('parent_id'), $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20) RETURNING *;

-- name: GetBranch :one
SELECT * FROM branches WHERE id = $1 AND project_id = $2 AND NOT deleting;

-- name: GetBranchByID :one
SELECT * FROM branches WHERE id = $1;

-- name: LockBranch :one
SELECT * FROM branches WHERE id = $1 AND project_id = $2 AND NOT deleting FOR NO KEY UPDATE;

-- name: LockBranchByID :one
SELECT * FROM branches WHERE id = $1 FOR NO KEY UPDATE;

-- name: GetDefaultBranch :one
SELECT * FROM branches WHERE project_id = $1 AND is_default AND NOT deleting;

-- name: ListProjectBranches :many
SELECT * FROM branches WHERE project_id = $1 ORDER BY created_at DESC, id;

-- name: ListBranchNames :many
SELECT b.id, b.name, b.volume_id, b.project_id, p.name AS project_name, b.deleting
FROM branches b JOIN projects p ON p.id = b.project_id;

-- name: CountChildren :one
SELECT count(*) FROM branches WHERE parent_id = $1 AND NOT deleting;

-- name: UpdateBranch :one
UPDATE branches SET name = $2, protected = $3, expires_at = $4, ttl_seconds = $5, updated_at = now() WHERE id = $1 RETURNING *;

-- name: ListExpiring :many
SELECT id, project_id, expires_at FROM branches WHERE expires_at IS NOT NULL AND NOT deleting ORDER BY expires_at LIMIT $1;

-- name: BranchReady :exec
UPDATE branches SET state = 'ready', pending_state = '', state_reason = '', state_changed_at = now(), updated_at = now(),
    parent_lsn = $2, parent_timestamp = $3, promote = $4
WHERE id = $1;

-- name: BranchFailed :exec
UPDATE branches SET pending_state = '', state_reason = $2, state_changed_at = now(), updated_at = now() WHERE id = $1;

-- name: BranchStarted :exec
UPDATE branches SET promote = false, setup = NULL, logical_size = @logical_size::bigint WHERE id = $1;

-- name: SetBranchSize :exec
UPDATE branches SET logical_size = $2 WHERE id = $1;

-- name: MarkBranchDeleting :one
UPDATE branches SET deleting = true, is_default = false, pending_state = 'storage_deleted', updated_at = now()
WHERE id = $1 RETURNING *;

-- name: DetachChildren :exec
UPDATE branches SET parent_id = NULL WHERE parent_id = $1;

-- name: DeleteBranch :exec
DELETE FROM branches WHERE id = $1;

-- name: CountBranches :one
SELECT count(*) FROM branches
WHERE project_id = $1 AND NOT deleting
  AND (@search::text = '' OR position(lower(@search::text) IN lower(name)) > 0 OR position(lower(@search::text) IN id) > 0);

-- name: ClearDefaultBranch :exec
UPDATE branches SET is_default = false, updated_at = now() WHERE project_id = $1 AND is_default AND NOT deleting;

-- name: SetDefaultBranch :one
UPDATE branches SET is_default = true, updated_at = now() WHERE id = $1 RETURNING *;
