-- +goose Up
CREATE TABLE invitations (
    id          text PRIMARY KEY,
    org_id      text NOT NULL REFERENCES organizations ON DELETE CASCADE,
    email       text NOT NULL,
    role        text NOT NULL CHECK (role IN ('admin', 'member')),
    invited_by  text NOT NULL,
    invited_at  timestamptz NOT NULL DEFAULT now(),
    expires_at  timestamptz NOT NULL,
    token_hash  bytea NOT NULL UNIQUE,
    accepted_at timestamptz,
    mail_due_at timestamptz,
    mail_tries  integer NOT NULL DEFAULT 0
);
COMMENT ON COLUMN invitations.mail_due_at IS 'when the letter is sent, or sent again; null when there is nothing to send';
CREATE UNIQUE INDEX invitations_open ON invitations (org_id, email) WHERE accepted_at IS NULL;
CREATE INDEX invitations_mail ON invitations (mail_due_at) WHERE mail_due_at IS NOT NULL;

-- +goose Down
DROP TABLE invitations;
