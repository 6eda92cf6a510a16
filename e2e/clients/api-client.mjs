// Calls every operation of the server through @neondatabase/api-client and looks at what each one did.
// The environment: CLIENTS (where it is installed), BASE_URL, API_KEY (of the admin of the organization ORG_ID), OTHER_KEY (of
// other@example.com), MEMBER_KEY (of member@example.com, a member of ORG_ID with the organization MEMBER_ORG_ID), PG_MAJOR (a
// version that schemas can be read of; empty where there is none).
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';

const { CLIENTS, BASE_URL: baseURL, API_KEY, OTHER_KEY, MEMBER_KEY, ORG_ID: org, MEMBER_ORG_ID: theirs, PG_MAJOR } = process.env;
const { createApiClient } = createRequire(CLIENTS + '/')('@neondatabase/api-client');
const api = createApiClient({ apiKey: API_KEY, baseURL });
const other = createApiClient({ apiKey: OTHER_KEY, baseURL });
const member = createApiClient({ apiKey: MEMBER_KEY, baseURL });

const ids = (list) => list.map((x) => x.id);
const names = (list) => list.map((x) => x.name);

// done waits for the operations of an answer and returns its data.
async function done(call) {
  const { data } = await call;
  for (const { id, project_id } of data.operations ?? []) {
    for (;;) {
      const { operation } = (await api.getProjectOperation(project_id, id)).data;
      if (operation.status === 'finished') break;
      assert.ok(['scheduling', 'running'].includes(operation.status), `${operation.action} is ${operation.status}: ${operation.error}`);
      await new Promise((again) => setTimeout(again, 20));
    }
  }
  return data;
}
const get = async (call) => (await call).data;
const fails = (status, call) =>
  assert.rejects(call, (e) => e.response?.status === status && typeof e.response.data.message === 'string' && typeof e.response.data.code === 'string');

// Who am I?
const me = await get(api.getCurrentUserInfo());
const auth = await get(api.getAuthDetails());
assert.equal(auth.account_id, me.id);
assert.deepEqual(ids((await get(api.getCurrentUserOrganizations())).organizations), [org]);
assert.ok((await get(api.getActiveRegions({}))).regions.length > 0);
await fails(401, createApiClient({ apiKey: 'napi_wrong', baseURL }).getCurrentUserInfo());

// Keys.
const key = await get(api.createApiKey({ key_name: 'from the client' }));
assert.equal((await get(createApiClient({ apiKey: key.key, baseURL }).getCurrentUserInfo())).id, me.id);
assert.ok(ids(await get(api.listApiKeys())).includes(key.id));
assert.equal((await get(api.revokeApiKey(key.id))).revoked, true);
await fails(401, createApiClient({ apiKey: key.key, baseURL }).getCurrentUserInfo());

// Projects.
const made = await done(api.createProject({ project: { name: 'client', org_id: org, pg_version: PG_MAJOR ? Number(PG_MAJOR) : undefined, branch: { name: 'trunk', database_name: 'shop', role_name: 'keeper' } } }));
const project = made.project.id;
const trunk = made.branch.id;
assert.equal(made.branch.name, 'trunk');
assert.equal(made.databases[0].name, 'shop');
assert.ok(ids((await get(api.listProjects({ org_id: org, limit: 100 }))).projects).includes(project));
await done(api.updateProject(project, { project: { name: 'renamed', settings: { allowed_ips: { ips: ['127.0.0.1', '::1'] } } } }));
const now = (await get(api.getProject(project))).project;
assert.equal(now.name, 'renamed');
assert.deepEqual(now.settings.allowed_ips.ips, ['127.0.0.1', '::1']);
assert.ok(Array.isArray((await get(api.getAvailablePreloadLibraries(project))).libraries));
const uri = (await get(api.getConnectionUri({ projectId: project, database_name: 'shop', role_name: 'keeper' }))).uri;
assert.equal(new URL(uri).pathname, '/shop');
assert.equal(new URL(uri).username, 'keeper');

// Branches.
const child = (await done(api.createProjectBranch(project, { branch: { name: 'child' }, endpoints: [{ type: 'read_write' }], annotation_value: { ticket: '17' } })));
const branch = child.branch.id;
assert.equal(child.branch.parent_id, trunk);
assert.deepEqual(names((await get(api.listProjectBranches({ projectId: project, sort_by: 'name', sort_order: 'asc' }))).branches), ['child', 'trunk']);
assert.equal((await get(api.countProjectBranches({ projectId: project }))).count, 2);
await done(api.updateProjectBranch(project, branch, { branch: { name: 'kid' } }));
const seen = await get(api.getProjectBranch(project, branch));
assert.equal(seen.branch.name, 'kid');
assert.equal(seen.annotation.value.ticket, '17');
await done(api.setDefaultProjectBranch(project, branch));
assert.equal((await get(api.getProjectBranch(project, branch))).branch.default, true);
await done(api.setDefaultProjectBranch(project, trunk));

// Schemas.
const schema = { projectId: project, branchId: branch, db_name: 'shop' };
if (PG_MAJOR) {
  assert.match((await get(api.getProjectBranchSchema(schema))).sql, /PostgreSQL database dump/);
  assert.equal((await get(api.getProjectBranchSchemaComparison({ ...schema, base_branch_id: trunk }))).diff, '');
}
assert.deepEqual((await get(api.getProjectBranchSchema({ ...schema, format: 'json' }))).json.tables, []);
await fails(404, api.getProjectBranchSchema({ ...schema, db_name: 'nowhere', format: 'json' }));

// Endpoints.
const main = child.endpoints[0].id;
const state = async (id) => (await get(api.getProjectEndpoint(project, id))).endpoint.current_state;
assert.deepEqual(ids((await get(api.listProjectBranchEndpoints(project, branch))).endpoints), [main]);
assert.equal((await get(api.listProjectEndpoints(project))).endpoints.length, 2);
await done(api.suspendProjectEndpoint(project, main));
assert.equal(await state(main), 'idle');
await done(api.startProjectEndpoint(project, main));
assert.equal(await state(main), 'active');
const restarted = await done(api.restartProjectEndpoint(project, main));
assert.deepEqual(restarted.operations.map((o) => o.action), ['suspend_compute', 'start_compute']);
await done(api.updateProjectEndpoint(project, main, { endpoint: { suspend_timeout_seconds: 600, name: 'the main one' } }));
assert.equal((await get(api.getProjectEndpoint(project, main))).endpoint.suspend_timeout_seconds, 600);
const replica = (await done(api.createProjectEndpoint(project, { endpoint: { branch_id: branch, type: 'read_only' } }))).endpoint.id;
assert.equal(await state(replica), 'active');
await done(api.deleteProjectEndpoint(project, replica));
await fails(404, api.getProjectEndpoint(project, replica));

// Databases and roles.
await done(api.createProjectBranchRole(project, branch, { role: { name: 'sally' } }));
assert.equal((await get(api.getProjectBranchRole(project, branch, 'sally'))).role.name, 'sally');
const { password } = await get(api.getProjectBranchRolePassword(project, branch, 'sally'));
const reset = await done(api.resetProjectBranchRolePassword(project, branch, 'sally'));
assert.notEqual(reset.role.password, password);
await done(api.createProjectBranchDatabase(project, branch, { database: { name: 'books', owner_name: 'sally' } }));
await done(api.updateProjectBranchDatabase(project, branch, 'books', { database: { name: 'library' } }));
assert.equal((await get(api.getProjectBranchDatabase(project, branch, 'library'))).database.owner_name, 'sally');
await fails(422, api.deleteProjectBranchRole(project, branch, 'sally')); // it owns a database
await done(api.deleteProjectBranchDatabase(project, branch, 'library'));
await done(api.deleteProjectBranchRole(project, branch, 'sally'));
assert.deepEqual(names((await get(api.listProjectBranchDatabases(project, branch))).databases), ['shop']);
assert.deepEqual(names((await get(api.listProjectBranchRoles(project, branch))).roles), ['keeper']);

// Operations.
const first = await get(api.listProjectOperations({ projectId: project, limit: 3 }));
assert.equal(first.operations.length, 3);
const second = await get(api.listProjectOperations({ projectId: project, limit: 3, cursor: first.pagination.cursor }));
assert.ok(!ids(second.operations).some((id) => ids(first.operations).includes(id)));

// Sharing and giving away.
const permission = await get(api.grantPermissionToProject(project, { email: 'other@example.com' }));
assert.deepEqual(ids((await get(api.listProjectPermissions(project))).project_permissions), [permission.id]);
assert.deepEqual(ids((await get(other.listSharedProjects({}))).projects), [project]);
await get(api.revokePermissionFromProject(project, permission.id));
await fails(404, other.getProject(project));
const keys = await get(api.addProjectJwks(project, { jwks_url: 'https://example.com/keys.json', provider_name: 'example' }));
assert.deepEqual(ids((await get(api.getProjectJwks(project))).jwks), [keys.jwks.id]);
await get(api.deleteProjectJwks(project, keys.jwks.id));
assert.deepEqual((await get(api.getProjectJwks(project))).jwks, []);
const owner = async () => (await get(member.getProject(project))).project.org_id;
const offer = await get(api.createProjectTransferRequest(project, {}));
await get(member.acceptProjectTransferRequest(project, offer.id, { org_id: theirs }));
assert.equal(await owner(), theirs);
await get(member.transferProjectsFromOrgToOrg(theirs, { destination_org_id: org, project_ids: [project] }));
assert.equal(await owner(), org);

// The organization.
assert.equal((await get(api.getOrganization(org))).id, org);
await get(api.createOrganizationInvitations(org, { invitations: [{ email: 'nobody@example.com', role: 'member' }] }));
assert.deepEqual((await get(api.getOrganizationInvitations(org))).invitations.map((i) => i.email), ['nobody@example.com']);
const { members } = await get(api.getOrganizationMembers({ orgId: org }));
const memberId = members.find((m) => m.user.email === 'member@example.com').member.id;
await get(api.updateOrganizationMember(org, memberId, { role: 'admin' }));
assert.equal((await get(api.getOrganizationMember(org, memberId))).role, 'admin');
await get(member.transferProjectsFromUserToOrg({ destination_org_id: theirs, project_ids: [project] })); // admins give away
assert.equal(await owner(), theirs);
await get(member.transferProjectsFromOrgToOrg(theirs, { destination_org_id: org, project_ids: [project] }));
await get(api.removeOrganizationMember(org, memberId));
await fails(404, member.getOrganization(org));
const orgKey = await get(api.createOrgApiKey(org, { key_name: 'ci', project_id: project }));
assert.equal((await get(createApiClient({ apiKey: orgKey.key, baseURL }).getProject(project))).project.id, project);
assert.deepEqual(ids(await get(api.listOrgApiKeys(org))), [orgKey.id]);
await get(api.revokeOrgApiKey(org, orgKey.id));

// What was used.
const range = { from: new Date(Date.now() - 3600_000).toISOString(), to: new Date(Date.now() + 60_000).toISOString(), granularity: 'hourly', org_id: org };
const value = (owner, name) => owner.periods.flatMap((p) => p.consumption).flatMap((f) => f.metrics).filter((m) => m.metric_name === name).reduce((sum, m) => sum + m.value, 0);
for (const end = Date.now() + 60_000; ; ) {
  const { projects } = await get(api.getConsumptionHistoryPerProjectV2({ ...range, project_ids: [project], metrics: ['compute_unit_seconds', 'root_branch_bytes_month'] }));
  assert.deepEqual(projects.map((p) => p.project_id), [project]);
  if (value(projects[0], 'root_branch_bytes_month') > 10e6) break;
  assert.ok(Date.now() < end, 'the storage of a project is not counted');
  await new Promise((again) => setTimeout(again, 100));
}
const used = (await get(api.getConsumptionHistoryPerBranchV2({ ...range, project_ids: [project], branch_ids: [trunk, branch], metrics: ['compute_unit_seconds', 'public_network_transfer_bytes'] }))).branches;
assert.deepEqual(used.map((b) => b.branch_id), [trunk, branch].sort());
const legacy = (await get(api.getConsumptionHistoryPerProject({ ...range, project_ids: [project] }))).projects[0].periods[0];
assert.ok(legacy.consumption.some((f) => f.active_time_seconds > 0 && f.written_data_bytes > 0));
await fails(406, api.getConsumptionHistoryPerProject({ ...range, from: '2024-03-01T00:00:00Z' }));

// What is not built says so.
await fails(501, api.listSnapshots(project));

// Away with it.
await done(api.deleteProjectBranch({ projectId: project, branchId: branch }));
await fails(404, api.getProjectBranch(project, branch));
await get(api.deleteProject(project));
await fails(404, api.getProject(project));
