package sdk

import (
	"context"
	"time"

	"github.com/boughdb/bough/api"
)

// Members lists who belongs to an organization, who joined last first.
func (c *Client) Members(ctx context.Context, orgID string) ([]Member, error) {
	if err := need("organization id", orgID); err != nil {
		return nil, err
	}
	out, err := answer[api.OrganizationMembers](c.api.GetOrganizationMembers(ctx, orgID, &api.GetOrganizationMembersParams{}))
	if err != nil {
		return nil, err
	}
	return out.Members, nil
}

// SetMemberRole makes a member an admin, or an ordinary member. An organization keeps an admin.
func (c *Client) SetMemberRole(ctx context.Context, orgID, memberID string, role api.MemberRole) (*api.Member, error) {
	if err := need("organization id", orgID, "member id", memberID); err != nil {
		return nil, err
	}
	return answer[api.Member](c.api.UpdateOrganizationMember(ctx, orgID, memberID, api.MemberUpdateRequest{Role: role}))
}

// RemoveMember ends a membership.
func (c *Client) RemoveMember(ctx context.Context, orgID, memberID string) error {
	if err := need("organization id", orgID, "member id", memberID); err != nil {
		return err
	}
	_, err := answer[api.EmptyObject](c.api.RemoveOrganizationMember(ctx, orgID, memberID))
	return err
}

// Invitations lists an organization's invitations.
func (c *Client) Invitations(ctx context.Context, orgID string) ([]Invitation, error) {
	if err := need("organization id", orgID); err != nil {
		return nil, err
	}
	out, err := answer[api.Invitations](c.api.GetOrganizationInvitations(ctx, orgID))
	if err != nil {
		return nil, err
	}
	return out.Invitations, nil
}

// Invite invites people into an organization: all of them, or none. Without a mail server on the other side each answer has an
// AcceptURL to pass on.
func (c *Client) Invite(ctx context.Context, orgID string, people ...InvitationCreate) ([]Invitation, error) {
	if err := need("organization id", orgID); err != nil {
		return nil, err
	}
	out, err := answer[api.Invitations](c.api.CreateOrganizationInvitations(ctx, orgID, api.InvitationsCreateRequest{Invitations: people}))
	if err != nil {
		return nil, err
	}
	return out.Invitations, nil
}

// OrgAPIKeys lists the keys of an organization and of its projects, without their secrets.
func (c *Client) OrgAPIKeys(ctx context.Context, orgID string) ([]OrgAPIKey, error) {
	if err := need("organization id", orgID); err != nil {
		return nil, err
	}
	out, err := answer[[]OrgAPIKey](c.api.ListOrgAPIKeys(ctx, orgID))
	if err != nil {
		return nil, err
	}
	return *out, nil
}

// CreateOrgAPIKey makes a key of an organization; projectID narrows it to one of its projects, "" does not.
func (c *Client) CreateOrgAPIKey(ctx context.Context, orgID, name, projectID string) (*OrgAPIKeyCreated, error) {
	if err := need("organization id", orgID); err != nil {
		return nil, err
	}
	return answer[OrgAPIKeyCreated](c.api.CreateOrgAPIKey(ctx, orgID, api.OrgAPIKeyCreateRequest{KeyName: name, ProjectID: opt(projectID)}))
}

// RevokeOrgAPIKey makes a key of an organization, or of one of its projects, stop working at once.
func (c *Client) RevokeOrgAPIKey(ctx context.Context, orgID string, id int64) (*OrgAPIKeyRevoked, error) {
	if err := need("organization id", orgID); err != nil {
		return nil, err
	}
	return answer[OrgAPIKeyRevoked](c.api.RevokeOrgAPIKey(ctx, orgID, id))
}

// ProjectPermissions lists with whom a project is shared.
func (c *Client) ProjectPermissions(ctx context.Context, projectID string) ([]ProjectPermission, error) {
	if err := need("project id", projectID); err != nil {
		return nil, err
	}
	out, err := answer[api.ProjectPermissions](c.api.ListProjectPermissions(ctx, projectID))
	if err != nil {
		return nil, err
	}
	return out.ProjectPermissions, nil
}

// ShareProject lets whoever has an e-mail address work in a project, now or once there is such an account.
func (c *Client) ShareProject(ctx context.Context, projectID, email string) (*ProjectPermission, error) {
	if err := need("project id", projectID); err != nil {
		return nil, err
	}
	return answer[ProjectPermission](c.api.GrantPermissionToProject(ctx, projectID, api.GrantPermissionToProjectRequest{Email: email}))
}

// UnshareProject takes a permission back.
func (c *Client) UnshareProject(ctx context.Context, projectID, permissionID string) (*ProjectPermission, error) {
	if err := need("project id", projectID, "permission id", permissionID); err != nil {
		return nil, err
	}
	return answer[ProjectPermission](c.api.RevokePermissionFromProject(ctx, projectID, permissionID))
}

// TransferProjects gives projects to another organization: all of them, or none. Without a source each may belong to any
// organization of the calling user.
func (c *Client) TransferProjects(ctx context.Context, sourceOrgID, destinationOrgID string, projectIDs ...string) error {
	if err := need("organization id", destinationOrgID); err != nil {
		return err
	}
	r := api.TransferProjectsRequest{DestinationOrgID: destinationOrgID, ProjectIds: projectIDs}
	if sourceOrgID == "" {
		_, err := answer[api.EmptyObject](c.api.TransferProjectsFromUserToOrg(ctx, r))
		return err
	}
	_, err := answer[api.EmptyObject](c.api.TransferProjectsFromOrgToOrg(ctx, sourceOrgID, r))
	return err
}

// RequestTransfer makes a request that whoever knows its id can accept until it expires; ttl 0 is the server's default.
func (c *Client) RequestTransfer(ctx context.Context, projectID string, ttl time.Duration) (*TransferRequest, error) {
	if err := need("project id", projectID); err != nil {
		return nil, err
	}
	r := api.ProjectTransferRequestCreateRequest{}
	if ttl > 0 {
		r.TTLSeconds = new(int64(ttl / time.Second))
	}
	return answer[TransferRequest](c.api.CreateProjectTransferRequest(ctx, projectID, r))
}

// AcceptTransfer takes a project over, into the calling user's first organization when orgID is "".
func (c *Client) AcceptTransfer(ctx context.Context, projectID, requestID, orgID string) error {
	if err := need("project id", projectID, "request id", requestID); err != nil {
		return err
	}
	_, err := answer[api.EmptyObject](c.api.AcceptProjectTransferRequest(ctx, projectID, requestID,
		api.ProjectTransferRequestAcceptRequest{OrgID: opt(orgID)}))
	return err
}

// ProjectJWKS lists where the keys of a project's tokens are published.
func (c *Client) ProjectJWKS(ctx context.Context, projectID string) ([]JWKS, error) {
	if err := need("project id", projectID); err != nil {
		return nil, err
	}
	out, err := answer[api.ProjectJWKSList](c.api.GetProjectJWKS(ctx, projectID))
	if err != nil {
		return nil, err
	}
	return out.Jwks, nil
}

// AddProjectJWKS stores where the keys of a project's tokens are published.
func (c *Client) AddProjectJWKS(ctx context.Context, projectID string, j JWKSCreate) (*JWKS, error) {
	if err := need("project id", projectID); err != nil {
		return nil, err
	}
	out, err := answer[api.JWKSCreated](c.api.AddProjectJWKS(ctx, projectID, j))
	if err != nil {
		return nil, err
	}
	return &out.Jwks, nil
}

// DeleteProjectJWKS removes one of a project's JWKS.
func (c *Client) DeleteProjectJWKS(ctx context.Context, projectID, jwksID string) (*JWKS, error) {
	if err := need("project id", projectID, "JWKS id", jwksID); err != nil {
		return nil, err
	}
	return answer[JWKS](c.api.DeleteProjectJWKS(ctx, projectID, jwksID))
}
