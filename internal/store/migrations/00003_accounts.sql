-- +goose Up
ALTER TABLE memberships ADD COLUMN id text NOT NULL DEFAULT gen_random_uuid()::text;
CREATE UNIQUE INDEX memberships_id ON memberships (id);

CREATE INDEX api_keys_org ON api_keys (org_id, id) WHERE org_id IS NOT NULL AND revoked_at IS NULL;
CREATE INDEX api_keys_project ON api_keys (project_id) WHERE project_id IS NOT NULL AND revoked_at IS NULL;

CREATE TABLE project_permissions (
    id         text PRIMARY KEY,
    project_id text NOT NULL REFERENCES projects ON DELETE CASCADE,
    email      text NOT NULL,
    granted_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (project_id, email)
);
COMMENT ON COLUMN project_permissions.email IS 'lower case; whoever has the address has the permission, also an account that is made later';
CREATE INDEX project_permissions_email ON project_permissions (email, project_id);

CREATE TABLE transfer_requests (
    id         text PRIMARY KEY,
    project_id text NOT NULL REFERENCES projects ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL
);
CREATE INDEX transfer_requests_project ON transfer_requests (project_id);

CREATE TABLE jwks (
    id            text PRIMARY KEY,
    project_id    text NOT NULL REFERENCES projects ON DELETE CASCADE,
    branch_id     text REFERENCES branches ON DELETE CASCADE,
    jwks_url      text NOT NULL,
    provider_name text NOT NULL,
    jwt_audience  text,
    role_names    text[],
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX jwks_project ON jwks (project_id, created_at, id);
CREATE INDEX jwks_branch ON jwks (branch_id) WHERE branch_id IS NOT NULL;

-- +goose Down
DROP TABLE jwks, transfer_requests, project_permissions;
DROP INDEX api_keys_org, api_keys_project;
ALTER TABLE memberships DROP COLUMN id;
