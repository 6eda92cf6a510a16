-- name: InsertEndpoint :one
INSERT INTO endpoints (id, project_id, branch_id, name, region_id, type, min_cu, max_cu, provisioner, pg_settings, pooler_enabled,
    suspend_timeout, disabled, state, pending_state, preload)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16) RETURNING *;

-- name: GetEndpoint :one
SELECT * FROM endpoints WHERE id = $1 AND NOT deleting;

-- name: GetAnyEndpoint :one
SELECT * FROM endpoints WHERE id = $1;

-- name: LockEndpoint :one
SELECT * FROM endpoints WHERE id = $1 AND NOT deleting FOR NO KEY UPDATE;

-- name: ListEndpoints :many
SELECT * FROM endpoints
WHERE project_id = @project_id AND (@branch_id::text = '' OR branch_id = @branch_id::text) AND NOT deleting ORDER BY created_at DESC, id;

-- name: ListBranchEndpoints :many
SELECT * FROM endpoints WHERE branch_id = $1 ORDER BY created_at, id;

-- name: UpdateEndpoint :one
UPDATE endpoints SET name = $2, min_cu = $3, max_cu = $4, provisioner = $5, pg_settings = $6, pooler_enabled = $7,
    suspend_timeout = $8, disabled = $9, preload = $10, updated_at = now()
WHERE id = $1 RETURNING *;

-- name: SetEndpointPending :one
UPDATE endpoints SET pending_state = $2, updated_at = now() WHERE id = $1 RETURNING *;

-- name: EndpointActive :exec
UPDATE endpoints SET state = 'active', pending_state = '', started_at = $2, suspended_at = NULL,
    last_active = greatest(last_active, $2), updated_at = now()
WHERE id = $1;

-- name: EndpointIdle :exec
UPDATE endpoints SET state = 'idle', pending_state = '', suspended_at = now(), updated_at = now() WHERE id = $1;

-- name: TouchEndpoint :exec
UPDATE endpoints SET last_active = greatest(last_active, @at::timestamptz) WHERE id = $1;

-- name: MarkEndpointDeleting :one
UPDATE endpoints SET deleting = true, pending_state = 'idle', updated_at = now() WHERE id = $1 RETURNING *;

-- name: DeleteEndpoint :exec
DELETE FROM endpoints WHERE id = $1;

-- name: ListActiveEndpoints :many
SELECT * FROM endpoints WHERE state = 'active' OR pending_state <> '';

-- name: SaveHandle :exec
INSERT INTO handles (compute_id, branch_id, handle) VALUES ($1, $2, $3)
ON CONFLICT (compute_id) DO UPDATE SET handle = excluded.handle, started_at = now();

-- name: DeleteHandle :exec
DELETE FROM handles WHERE compute_id = $1;

-- name: GetHandle :one
SELECT * FROM handles WHERE compute_id = $1;

-- name: ListHandles :many
SELECT * FROM handles;

-- name: CountEndpointStates :many
SELECT state, count(*) FROM endpoints WHERE NOT deleting GROUP BY state;

-- name: GetEndpointAccess :one
SELECT sqlc.embed(e), b.protected, p.settings
FROM endpoints e JOIN branches b ON b.id = e.branch_id JOIN projects p ON p.id = e.project_id
WHERE e.id = $1 AND NOT e.deleting;
