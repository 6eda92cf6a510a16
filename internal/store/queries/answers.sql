-- name: GetAnswer :one
SELECT request, answer FROM answers WHERE key_id = $1 AND key = $2 AND created_at > now() - interval '24 hours';

-- name: DropOldAnswer :exec
DELETE FROM answers WHERE key_id = $1 AND key = $2 AND created_at <= now() - interval '24 hours';

-- name: InsertAnswer :exec
INSERT INTO answers (key_id, key, request, answer) VALUES ($1, $2, $3, $4);

-- name: PruneAnswers :execrows
DELETE FROM answers WHERE created_at <= now() - interval '24 hours';

-- name: PruneOperations :execrows
DELETE FROM operations WHERE seq = ANY (ARRAY(
    SELECT o.seq FROM operations o
    WHERE o.created_at < @before::timestamptz AND o.status NOT IN ('scheduling', 'running', 'cancelling') LIMIT @max_rows));
