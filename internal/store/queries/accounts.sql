-- name: ListUserMemberships :many
SELECT * FROM memberships WHERE user_id = $1 ORDER BY joined_at, org_id;

-- name: LockOrganization :one
SELECT * FROM organizations WHERE id = $1 FOR UPDATE;

-- name: ListMembers :many
SELECT sqlc.embed(m), u.email FROM memberships m JOIN users u ON u.id = m.user_id WHERE m.org_id = $1;

-- name: GetMember :one
SELECT sqlc.embed(m), u.email FROM memberships m JOIN users u ON u.id = m.user_id WHERE m.org_id = $1 AND m.id = $2;

-- name: GetMemberByUser :one
SELECT sqlc.embed(m), u.email FROM memberships m JOIN users u ON u.id = m.user_id WHERE m.org_id = $1 AND m.user_id = $2;

-- name: CountAdmins :one
SELECT count(*) FROM memberships WHERE org_id = $1 AND role = 'admin';

-- name: SetMemberRole :exec
UPDATE memberships SET role = $3 WHERE org_id = $1 AND id = $2;

-- name: DeleteMember :exec
DELETE FROM memberships WHERE org_id = $1 AND id = $2;

-- name: ListOrgKeys :many
SELECT sqlc.embed(k), coalesce(u.name, '')::text AS user_name
FROM api_keys k LEFT JOIN users u ON u.id = k.user_id
WHERE k.org_id = @org_id::text AND k.revoked_at IS NULL ORDER BY k.id;

-- name: GetOrgKey :one
SELECT * FROM api_keys WHERE id = $1 AND org_id = @org_id::text AND revoked_at IS NULL;

-- name: RevokeProjectKeys :exec
UPDATE api_keys SET revoked_at = now() WHERE project_id = @project_id::text AND revoked_at IS NULL;

-- name: UpsertProjectPermission :one
INSERT INTO project_permissions (id, project_id, email) VALUES ($1, $2, $3)
ON CONFLICT (project_id, email) DO UPDATE SET email = excluded.email RETURNING *;

-- name: ListProjectPermissions :many
SELECT * FROM project_permissions WHERE project_id = $1 ORDER BY granted_at, id;

-- name: HasProjectPermission :one
SELECT EXISTS (SELECT FROM project_permissions WHERE project_id = $1 AND email = $2);

-- name: DeleteProjectPermission :one
DELETE FROM project_permissions WHERE project_id = $1 AND id = $2 RETURNING *;

-- name: ListSharedProjects :many
SELECT p.* FROM project_permissions s JOIN projects p ON p.id = s.project_id
WHERE s.email = @email AND NOT p.deleting AND p.id > @after::text AND NOT p.org_id = ANY(@org_ids::text[])
  AND (@search::text = '' OR position(lower(@search::text) IN lower(p.name)) > 0 OR position(lower(@search::text) IN p.id) > 0)
ORDER BY p.id LIMIT @max_rows;

-- name: SetProjectOrg :exec
UPDATE projects SET org_id = $2, updated_at = now() WHERE id = $1;

-- name: InsertTransferRequest :one
INSERT INTO transfer_requests (id, project_id, expires_at) VALUES ($1, $2, $3) RETURNING *;

-- name: GetTransferRequest :one
SELECT * FROM transfer_requests WHERE id = $1 AND project_id = $2;

-- name: DeleteTransferRequests :exec
DELETE FROM transfer_requests WHERE project_id = $1;

-- name: DeleteExpiredTransferRequests :exec
DELETE FROM transfer_requests WHERE project_id = $1 AND expires_at < now() - interval '7 days';

-- name: InsertJWKS :one
INSERT INTO jwks (id, project_id, branch_id, jwks_url, provider_name, jwt_audience, role_names)
VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING *;

-- name: ListJWKS :many
SELECT * FROM jwks WHERE project_id = $1 ORDER BY created_at, id;

-- name: DeleteJWKS :one
DELETE FROM jwks WHERE project_id = $1 AND id = $2 RETURNING *;
