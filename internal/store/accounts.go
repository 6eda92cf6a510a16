package store

import (
	"context"
	"time"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/store/db"
)

func toMembership(r db.Membership) core.Membership {
	return core.Membership{ID: r.ID, OrgID: r.OrgID, UserID: r.UserID, Role: r.Role, JoinedAt: r.JoinedAt}
}

// UserMemberships returns where a user is a member, in the order of joining.
func (q Q) UserMemberships(ctx context.Context, userID string) ([]core.Membership, error) {
	r, err := q.db.ListUserMemberships(ctx, userID)
	return many(r, err, toMembership)
}

// LockOrganization is Organization, and keeps others from changing its members until the transaction ends.
func (q Q) LockOrganization(ctx context.Context, id string) (core.Organization, error) {
	r, err := q.db.LockOrganization(ctx, id)
	return one(r, err, toOrganization, "organization", id)
}

// Members returns the members of an organization with their e-mail addresses, in no order.
func (q Q) Members(ctx context.Context, orgID string) ([]core.Membership, error) {
	r, err := q.db.ListMembers(ctx, orgID)
	return many(r, err, func(r db.ListMembersRow) core.Membership { return toMember(db.GetMemberRow(r)) })
}

func toMember(r db.GetMemberRow) core.Membership {
	m := toMembership(r.Membership)
	m.Email = r.Email
	return m
}

// Member returns one member of an organization by the id of the membership.
func (q Q) Member(ctx context.Context, orgID, id string) (core.Membership, error) {
	r, err := q.db.GetMember(ctx, db.GetMemberParams{OrgID: orgID, ID: id})
	return one(r, err, toMember, "member", id)
}

// MemberByUser returns a user's membership in an organization.
func (q Q) MemberByUser(ctx context.Context, orgID, userID string) (core.Membership, error) {
	r, err := q.db.GetMemberByUser(ctx, db.GetMemberByUserParams{OrgID: orgID, UserID: userID})
	return one(r, err, func(r db.GetMemberByUserRow) core.Membership { return toMember(db.GetMemberRow(r)) }, "member", userID)
}

// Admins counts the admins of an organization.
func (q Q) Admins(ctx context.Context, orgID string) (int64, error) {
	n, err := q.db.CountAdmins(ctx, orgID)
	return n, internal(err)
}

// SetMemberRole gives a member another role.
func (q Q) SetMemberRole(ctx context.Context, orgID, id, role string) error {
	return internal(q.db.SetMemberRole(ctx, db.SetMemberRoleParams{OrgID: orgID, ID: id, Role: role}))
}

// DeleteMember removes a member.
func (q Q) DeleteMember(ctx context.Context, orgID, id string) error {
	return internal(q.db.DeleteMember(ctx, db.DeleteMemberParams{OrgID: orgID, ID: id}))
}

// OrgKeys returns the keys of an organization and of its projects, oldest first.
func (q Q) OrgKeys(ctx context.Context, orgID string) ([]core.APIKey, error) {
	r, err := q.db.ListOrgKeys(ctx, orgID)
	return many(r, err, func(r db.ListOrgKeysRow) core.APIKey {
		k := toKey(r.ApiKey)
		k.UserName = r.UserName
		return k
	})
}

// OrgKey returns one key of an organization or of its projects.
func (q Q) OrgKey(ctx context.Context, orgID string, id int64) (core.APIKey, error) {
	r, err := q.db.GetOrgKey(ctx, db.GetOrgKeyParams{ID: id, OrgID: orgID})
	return one(r, err, toKey, "API key", "")
}

func toPermission(r db.ProjectPermission) core.ProjectPermission {
	return core.ProjectPermission{ID: r.ID, ProjectID: r.ProjectID, Email: r.Email, GrantedAt: r.GrantedAt}
}

// Share shares a project with an e-mail address, in lower case. Sharing it again returns the permission that is there.
func (q Q) Share(ctx context.Context, projectID, email string) (core.ProjectPermission, error) {
	r, err := q.db.UpsertProjectPermission(ctx, db.UpsertProjectPermissionParams{ID: core.NewUUID(), ProjectID: projectID, Email: email})
	return one(r, err, toPermission, "permission", "")
}

// Permissions returns with whom a project is shared, oldest first.
func (q Q) Permissions(ctx context.Context, projectID string) ([]core.ProjectPermission, error) {
	r, err := q.db.ListProjectPermissions(ctx, projectID)
	return many(r, err, toPermission)
}

// Shared tells whether a project is shared with an e-mail address.
func (q Q) Shared(ctx context.Context, projectID, email string) (bool, error) {
	ok, err := q.db.HasProjectPermission(ctx, db.HasProjectPermissionParams{ProjectID: projectID, Email: email})
	return ok, internal(err)
}

// Unshare takes a permission back and returns it.
func (q Q) Unshare(ctx context.Context, projectID, id string) (core.ProjectPermission, error) {
	r, err := q.db.DeleteProjectPermission(ctx, db.DeleteProjectPermissionParams{ProjectID: projectID, ID: id})
	return one(r, err, toPermission, "permission", id)
}

// SharedProjects returns the projects that are shared with an e-mail address and outside of the filter's organizations,
// ordered by id. No organizations are an empty list to PostgreSQL: nothing is outside of NULL.
func (q Q) SharedProjects(ctx context.Context, email string, f ProjectFilter) ([]core.Project, error) {
	r, err := q.db.ListSharedProjects(ctx, db.ListSharedProjectsParams{
		Email: email, OrgIds: append([]string{}, f.OrgIDs...), Search: f.Search, After: f.After, MaxRows: int32(f.Limit),
	})
	return many(r, err, toProject)
}

// MoveProject gives a project to another organization: its project-scoped keys end, and so do the requests to transfer it.
func (q Q) MoveProject(ctx context.Context, id, orgID string) error {
	if err := q.db.SetProjectOrg(ctx, db.SetProjectOrgParams{ID: id, OrgID: orgID}); err != nil {
		return internal(err)
	}
	if err := q.db.RevokeProjectKeys(ctx, id); err != nil {
		return internal(err)
	}
	return internal(q.db.DeleteTransferRequests(ctx, id))
}

func toTransferRequest(r db.TransferRequest) core.TransferRequest {
	return core.TransferRequest{ID: r.ID, ProjectID: r.ProjectID, CreatedAt: r.CreatedAt, ExpiresAt: r.ExpiresAt}
}

// InsertTransferRequest adds a request to transfer a project, and removes those that expired long ago.
func (q Q) InsertTransferRequest(ctx context.Context, projectID string, expires time.Time) (core.TransferRequest, error) {
	if err := q.db.DeleteExpiredTransferRequests(ctx, projectID); err != nil {
		return core.TransferRequest{}, internal(err)
	}
	r, err := q.db.InsertTransferRequest(ctx, db.InsertTransferRequestParams{ID: core.NewUUID(), ProjectID: projectID, ExpiresAt: expires})
	return one(r, err, toTransferRequest, "transfer request", "")
}

// TransferRequest returns one request to transfer a project.
func (q Q) TransferRequest(ctx context.Context, projectID, id string) (core.TransferRequest, error) {
	r, err := q.db.GetTransferRequest(ctx, db.GetTransferRequestParams{ID: id, ProjectID: projectID})
	return one(r, err, toTransferRequest, "transfer request", id)
}

func toJWKS(r db.Jwk) core.JWKS {
	return core.JWKS{
		ID: r.ID, ProjectID: r.ProjectID, BranchID: orEmpty(r.BranchID), URL: r.JwksUrl, ProviderName: r.ProviderName,
		Audience: orEmpty(r.JwtAudience), RoleNames: r.RoleNames, CreatedAt: r.CreatedAt, UpdatedAt: r.UpdatedAt,
	}
}

// InsertJWKS adds a JWKS to a project.
func (q Q) InsertJWKS(ctx context.Context, j core.JWKS) (core.JWKS, error) {
	r, err := q.db.InsertJWKS(ctx, db.InsertJWKSParams{
		ID: j.ID, ProjectID: j.ProjectID, BranchID: nilIfEmpty(j.BranchID), JwksUrl: j.URL, ProviderName: j.ProviderName,
		JwtAudience: nilIfEmpty(j.Audience), RoleNames: j.RoleNames,
	})
	return one(r, err, toJWKS, "JWKS", j.ID)
}

// JWKS returns a project's JWKS, oldest first.
func (q Q) JWKS(ctx context.Context, projectID string) ([]core.JWKS, error) {
	r, err := q.db.ListJWKS(ctx, projectID)
	return many(r, err, toJWKS)
}

// DeleteJWKS removes a JWKS of a project and returns it.
func (q Q) DeleteJWKS(ctx context.Context, projectID, id string) (core.JWKS, error) {
	r, err := q.db.DeleteJWKS(ctx, db.DeleteJWKSParams{ProjectID: projectID, ID: id})
	return one(r, err, toJWKS, "JWKS", id)
}
