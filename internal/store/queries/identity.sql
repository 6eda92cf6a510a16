-- name: GetMeta :one
SELECT value FROM meta WHERE key = $1;

-- name: SetMetaOnce :exec
INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT (key) DO NOTHING;

-- name: InsertUser :one
INSERT INTO users (id, email, name) VALUES ($1, $2, $3) RETURNING *;

-- name: GetUser :one
SELECT * FROM users WHERE id = $1;

-- name: GetUserByEmail :one
SELECT * FROM users WHERE email = $1;

-- name: ListUsers :many
SELECT * FROM users ORDER BY created_at, id;

-- name: InsertOrganization :one
INSERT INTO organizations (id, handle, name) VALUES ($1, $2, $3) RETURNING *;

-- name: GetOrganization :one
SELECT * FROM organizations WHERE id = $1;

-- name: ListOrganizations :many
SELECT * FROM organizations ORDER BY created_at, id;

-- name: ListUserOrganizations :many
SELECT o.* FROM organizations o JOIN memberships m ON m.org_id = o.id
WHERE m.user_id = $1 ORDER BY m.joined_at, o.id;

-- name: UpsertMembership :exec
INSERT INTO memberships (org_id, user_id, role) VALUES ($1, $2, $3)
ON CONFLICT (user_id, org_id) DO UPDATE SET role = excluded.role;

-- name: InsertKey :one
INSERT INTO api_keys (name, hash, user_id, org_id, project_id)
VALUES ($1, $2, $3, sqlc.narg('org_id'), sqlc.narg('project_id')) RETURNING *;

-- name: GetKeyByHash :one
SELECT sqlc.embed(k), coalesce(u.name, '')::text AS user_name, coalesce(u.email, '')::text AS user_email
FROM api_keys k LEFT JOIN users u ON u.id = k.user_id
WHERE k.hash = $1 AND k.revoked_at IS NULL;

-- name: TouchKey :exec
UPDATE api_keys SET last_used_at = now(), last_used_from_addr = $2 WHERE id = $1;

-- name: ListPersonalKeys :many
SELECT * FROM api_keys WHERE user_id = $1 AND org_id IS NULL AND revoked_at IS NULL ORDER BY id;

-- name: RevokePersonalKey :one
UPDATE api_keys SET revoked_at = now()
WHERE id = $1 AND user_id = $2 AND org_id IS NULL AND revoked_at IS NULL RETURNING *;

-- name: ListKeys :many
SELECT sqlc.embed(k), coalesce(u.name, '')::text AS user_name
FROM api_keys k LEFT JOIN users u ON u.id = k.user_id
WHERE k.revoked_at IS NULL ORDER BY k.id;

-- name: RevokeKey :one
UPDATE api_keys SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL RETURNING *;
