-- name: InsertOperation :one
INSERT INTO operations (id, project_id, branch_id, endpoint_id, action, status, params, request_id)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING *;

-- name: CountPendingOperations :one
SELECT count(*) FROM operations WHERE branch_id = $1 AND status IN ('scheduling', 'running');

-- name: ListPendingOperations :many
SELECT * FROM operations WHERE branch_id = $1 AND status IN ('scheduling', 'running') ORDER BY seq;

-- name: GetOperation :one
SELECT * FROM operations WHERE id = $1 AND project_id = $2;

-- name: GetOperationStatus :one
SELECT status, error FROM operations WHERE id = $1;

-- name: ListOperations :many
SELECT * FROM operations
WHERE project_id = $1 AND created_at < @before::timestamptz
ORDER BY created_at DESC, seq DESC LIMIT @max_rows;

-- name: ClaimHead :one
UPDATE operations SET status = 'running', claimed_by = @instance::bigint,
    started_at = coalesce(started_at, clock_timestamp()), updated_at = clock_timestamp()
WHERE seq = (SELECT o.seq FROM operations o WHERE o.branch_id = $1 AND o.status IN ('scheduling', 'running') ORDER BY o.seq LIMIT 1)
  AND status IN ('scheduling', 'running')
  AND (claimed_by IS NULL OR claimed_by = @instance::bigint)
  AND EXISTS (SELECT FROM holders h WHERE h.project_id = operations.project_id AND h.server = @instance::bigint AND h.ready)
RETURNING *;

-- name: EndOperation :exec
UPDATE operations SET status = $2, error = $3, updated_at = clock_timestamp(),
    duration_ms = (extract(epoch FROM clock_timestamp() - coalesce(started_at, clock_timestamp())) * 1000)::bigint
WHERE id = $1;

-- name: CountFailure :one
UPDATE operations SET failures_count = failures_count + 1, error = $2, updated_at = clock_timestamp() WHERE id = $1 RETURNING failures_count;

-- name: SkipPending :exec
UPDATE operations SET status = 'skipped', error = $2, updated_at = clock_timestamp()
WHERE branch_id = $1 AND status = 'scheduling' AND action IN ('start_compute', 'apply_config');

-- name: ListClaimants :many
SELECT DISTINCT claimed_by::bigint FROM operations WHERE status IN ('scheduling', 'running') AND claimed_by IS NOT NULL;

-- name: ReleaseClaims :exec
UPDATE operations SET claimed_by = NULL, failures_count = failures_count + 1, updated_at = clock_timestamp()
WHERE status IN ('scheduling', 'running') AND claimed_by = @instance::bigint;

-- name: ListBusyBranches :many
SELECT DISTINCT branch_id FROM operations WHERE status IN ('scheduling', 'running');

-- name: LastOperation :one
SELECT coalesce(max(seq), 0)::bigint FROM operations WHERE branch_id = $1;
