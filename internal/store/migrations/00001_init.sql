-- +goose Up
CREATE TABLE meta (
    key   text PRIMARY KEY,
    value text NOT NULL
);

CREATE TABLE users (
    id         text PRIMARY KEY,
    email      text NOT NULL UNIQUE,
    name       text NOT NULL,
    last_name  text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE organizations (
    id         text PRIMARY KEY,
    handle     text NOT NULL,
    name       text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE memberships (
    org_id    text NOT NULL REFERENCES organizations ON DELETE CASCADE,
    user_id   text NOT NULL REFERENCES users ON DELETE CASCADE,
    role      text NOT NULL CHECK (role IN ('admin', 'member')),
    joined_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, org_id)
);
CREATE INDEX memberships_org ON memberships (org_id);

CREATE TABLE projects (
    id                  text PRIMARY KEY,
    org_id              text NOT NULL REFERENCES organizations,
    created_by          text NOT NULL DEFAULT '',
    name                text NOT NULL,
    region_id           text NOT NULL,
    pg_version          integer NOT NULL,
    provisioner         text NOT NULL,
    default_min_cu      double precision NOT NULL,
    default_max_cu      double precision NOT NULL,
    default_suspend     bigint NOT NULL,
    default_pg_settings jsonb NOT NULL DEFAULT '{}',
    settings            jsonb NOT NULL,
    store_passwords     boolean NOT NULL,
    history_retention   bigint NOT NULL,
    compute_last_active timestamptz,
    deleting            boolean NOT NULL DEFAULT false,
    created_at          timestamptz NOT NULL DEFAULT now(),
    updated_at          timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX projects_org ON projects (org_id, id) WHERE NOT deleting;

CREATE TABLE api_keys (
    id                  bigint GENERATED ALWAYS AS IDENTITY (START 100001) PRIMARY KEY,
    name                text NOT NULL,
    hash                bytea NOT NULL UNIQUE,
    user_id             text NOT NULL DEFAULT '',
    org_id              text REFERENCES organizations ON DELETE CASCADE,
    project_id          text,
    created_at          timestamptz NOT NULL DEFAULT now(),
    last_used_at        timestamptz,
    last_used_from_addr text NOT NULL DEFAULT '',
    revoked_at          timestamptz
);
CREATE INDEX api_keys_user ON api_keys (user_id, id) WHERE org_id IS NULL;

CREATE TABLE branches (
    id               text PRIMARY KEY,
    project_id       text NOT NULL REFERENCES projects ON DELETE CASCADE,
    parent_id        text REFERENCES branches,
    parent_lsn       bigint NOT NULL DEFAULT 0,
    parent_timestamp timestamptz,
    name             text NOT NULL,
    state            text NOT NULL,
    pending_state    text NOT NULL DEFAULT '',
    state_reason     text NOT NULL DEFAULT '',
    state_changed_at timestamptz NOT NULL DEFAULT now(),
    is_default       boolean NOT NULL DEFAULT false,
    protected        boolean NOT NULL DEFAULT false,
    init_source      text NOT NULL,
    expires_at       timestamptz,
    logical_size     bigint,
    created_by       text NOT NULL DEFAULT '',
    created_by_name  text NOT NULL DEFAULT '',
    annotation       jsonb,
    annotated_at     timestamptz,
    volume_id        text NOT NULL,
    incarnation      integer NOT NULL DEFAULT 1,
    promote          boolean NOT NULL DEFAULT false,
    setup            jsonb,
    deleting         boolean NOT NULL DEFAULT false,
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now()
);
COMMENT ON COLUMN branches.promote IS 'the volume is a fresh fork: its next start ends recovery on a new timeline';
COMMENT ON COLUMN branches.setup IS 'roles and databases that the next start still has to apply';
CREATE UNIQUE INDEX branches_name ON branches (project_id, name) WHERE NOT deleting;
CREATE UNIQUE INDEX branches_default ON branches (project_id) WHERE is_default AND NOT deleting;
CREATE INDEX branches_updated ON branches (project_id, updated_at, id) WHERE NOT deleting;
CREATE INDEX branches_created ON branches (project_id, created_at, id) WHERE NOT deleting;
CREATE INDEX branches_parent ON branches (parent_id) WHERE parent_id IS NOT NULL;

CREATE TABLE endpoints (
    id              text PRIMARY KEY,
    project_id      text NOT NULL REFERENCES projects ON DELETE CASCADE,
    branch_id       text NOT NULL REFERENCES branches ON DELETE CASCADE,
    name            text NOT NULL DEFAULT '',
    region_id       text NOT NULL,
    type            text NOT NULL,
    min_cu          double precision NOT NULL,
    max_cu          double precision NOT NULL,
    provisioner     text NOT NULL,
    pg_settings     jsonb NOT NULL DEFAULT '{}',
    pooler_enabled  boolean NOT NULL DEFAULT false,
    suspend_timeout bigint NOT NULL,
    disabled        boolean NOT NULL DEFAULT false,
    state           text NOT NULL,
    pending_state   text NOT NULL DEFAULT '',
    last_active     timestamptz,
    started_at      timestamptz,
    suspended_at    timestamptz,
    deleting        boolean NOT NULL DEFAULT false,
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX endpoints_read_write ON endpoints (branch_id) WHERE type = 'read_write' AND NOT deleting;
CREATE INDEX endpoints_branch ON endpoints (branch_id);
CREATE INDEX endpoints_project ON endpoints (project_id, id);

CREATE TABLE handles (
    compute_id text PRIMARY KEY,
    branch_id  text NOT NULL REFERENCES branches ON DELETE CASCADE,
    handle     jsonb NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE handles IS 'the compute driver''s handles of running computes; compute_id is an endpoint''s id, or a branch''s while work on it needs a compute of its own';
CREATE INDEX handles_branch ON handles (branch_id);

CREATE TABLE roles (
    branch_id  text NOT NULL REFERENCES branches ON DELETE CASCADE,
    name       text NOT NULL,
    protected  boolean NOT NULL DEFAULT false,
    no_login   boolean NOT NULL DEFAULT false,
    verifier   text NOT NULL DEFAULT '',
    sealed     bytea,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (branch_id, name)
);

CREATE TABLE databases (
    id         bigint GENERATED ALWAYS AS IDENTITY (START 1000001) PRIMARY KEY,
    branch_id  text NOT NULL REFERENCES branches ON DELETE CASCADE,
    name       text NOT NULL,
    owner_name text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (branch_id, name)
);

CREATE TABLE operations (
    seq            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id             text NOT NULL UNIQUE,
    project_id     text NOT NULL REFERENCES projects ON DELETE CASCADE,
    branch_id      text NOT NULL,
    endpoint_id    text NOT NULL DEFAULT '',
    action         text NOT NULL,
    status         text NOT NULL,
    error          text NOT NULL DEFAULT '',
    failures_count integer NOT NULL DEFAULT 0,
    params         jsonb NOT NULL DEFAULT '{}',
    request_id     text NOT NULL DEFAULT '',
    claimed_by     bigint,
    created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at     timestamptz,
    duration_ms    bigint NOT NULL DEFAULT 0
);
COMMENT ON COLUMN operations.branch_id IS 'no foreign key: the record outlives its branch';
COMMENT ON COLUMN operations.claimed_by IS 'the server instance that runs it; see internal/ops';
CREATE INDEX operations_project ON operations (project_id, created_at DESC, seq DESC);
CREATE INDEX operations_branch ON operations (branch_id, seq);
CREATE INDEX operations_queue ON operations (branch_id, seq) WHERE status IN ('scheduling', 'running');

-- +goose Down
DROP TABLE operations, databases, roles, handles, endpoints, branches, api_keys, projects, memberships, organizations, users, meta;
