-- name: DeleteOpenInvitation :exec
DELETE FROM invitations WHERE org_id = $1 AND email = $2 AND accepted_at IS NULL;

-- name: InsertInvitation :one
INSERT INTO invitations (id, org_id, email, role, invited_by, expires_at, token_hash, accepted_at, mail_due_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) RETURNING *;

-- name: ListInvitations :many
SELECT * FROM invitations WHERE org_id = $1 ORDER BY invited_at, id;

-- name: ListOpenInvitations :many
SELECT * FROM invitations WHERE accepted_at IS NULL AND expires_at > now() ORDER BY invited_at, id;

-- name: GetInvitationByToken :one
SELECT sqlc.embed(i), o.name FROM invitations i JOIN organizations o ON o.id = i.org_id
WHERE i.token_hash = $1 AND i.accepted_at IS NULL AND i.expires_at > now();

-- name: LockInvitation :one
SELECT * FROM invitations WHERE token_hash = $1 AND accepted_at IS NULL AND expires_at > now() FOR UPDATE;

-- name: AcceptInvitation :exec
UPDATE invitations SET accepted_at = now(), mail_due_at = NULL WHERE id = $1;

-- name: ClaimLetter :one
UPDATE invitations i SET mail_tries = i.mail_tries + 1, mail_due_at = @again::timestamptz
WHERE i.id = (SELECT d.id FROM invitations d WHERE d.mail_due_at <= now() ORDER BY d.mail_due_at LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING i.*, (SELECT o.name FROM organizations o WHERE o.id = i.org_id)::text AS org_name;

-- name: SetLetterDue :exec
UPDATE invitations SET mail_due_at = sqlc.narg('due') WHERE id = @id;
