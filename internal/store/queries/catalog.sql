-- name: InsertRole :one
INSERT INTO roles (branch_id, name, protected, no_login, verifier, sealed) VALUES ($1, $2, $3, $4, $5, $6) RETURNING *;

-- name: UpsertRole :exec
INSERT INTO roles (branch_id, name, no_login, verifier) VALUES ($1, $2, $3, $4)
ON CONFLICT (branch_id, name) DO UPDATE SET no_login = excluded.no_login, verifier = excluded.verifier,
    sealed = CASE WHEN roles.verifier = excluded.verifier THEN roles.sealed END, updated_at = now()
WHERE (roles.no_login, roles.verifier) IS DISTINCT FROM (excluded.no_login, excluded.verifier);

-- name: GetRole :one
SELECT * FROM roles WHERE branch_id = $1 AND name = $2;

-- name: ListRoles :many
SELECT * FROM roles WHERE branch_id = $1 ORDER BY created_at, name;

-- name: SetRolePassword :one
UPDATE roles SET verifier = $3, sealed = $4, updated_at = now() WHERE branch_id = $1 AND name = $2 RETURNING *;

-- name: DeleteRole :one
DELETE FROM roles WHERE branch_id = $1 AND name = $2 RETURNING *;

-- name: DeleteRolesNotIn :exec
DELETE FROM roles WHERE branch_id = $1 AND NOT (name = ANY(@names::text[]));

-- name: CopyRoles :exec
INSERT INTO roles (branch_id, name, protected, no_login, verifier, sealed, created_at, updated_at)
SELECT @child::text, name, protected, no_login, verifier, sealed, created_at, updated_at FROM roles WHERE roles.branch_id = @parent::text;

-- name: InsertDatabase :one
INSERT INTO databases (branch_id, name, owner_name) VALUES ($1, $2, $3) RETURNING *;

-- name: UpsertDatabase :exec
INSERT INTO databases (branch_id, name, owner_name) VALUES ($1, $2, $3)
ON CONFLICT (branch_id, name) DO UPDATE SET owner_name = excluded.owner_name, updated_at = now()
WHERE databases.owner_name <> excluded.owner_name;

-- name: GetDatabase :one
SELECT * FROM databases WHERE branch_id = $1 AND name = $2;

-- name: ListDatabases :many
SELECT * FROM databases WHERE branch_id = $1 ORDER BY id;

-- name: ListDatabasesOwnedBy :many
SELECT * FROM databases WHERE branch_id = $1 AND owner_name = $2 ORDER BY id;

-- name: UpdateDatabase :one
UPDATE databases SET name = @new_name, owner_name = $3, updated_at = now() WHERE branch_id = $1 AND name = $2 RETURNING *;

-- name: DeleteDatabase :one
DELETE FROM databases WHERE branch_id = $1 AND name = $2 RETURNING *;

-- name: DeleteDatabasesNotIn :exec
DELETE FROM databases WHERE branch_id = $1 AND NOT (name = ANY(@names::text[]));

-- name: CopyDatabases :exec
INSERT INTO databases (branch_id, name, owner_name, created_at, updated_at)
SELECT @child::text, name, owner_name, created_at, updated_at FROM databases WHERE databases.branch_id = @parent::text ORDER BY id;
