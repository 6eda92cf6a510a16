-- +goose Up
CREATE INDEX branches_project ON branches (project_id);
CREATE INDEX endpoints_awake ON endpoints (id) WHERE state = 'active' OR pending_state <> '';
CREATE INDEX invitations_org ON invitations (org_id, invited_at, id);

-- +goose Down
DROP INDEX branches_project, endpoints_awake, invitations_org;
