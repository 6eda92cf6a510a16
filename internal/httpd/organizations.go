package httpd

import (
	"context"
	"net/http"
	"strconv"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/internal/control"
	"github.com/boughdb/bough/internal/core"
)

// nobody is shown as the creator of a key that was made on the server's machine.
const nobody = "00000000-0000-0000-0000-000000000000"

// GetAuthDetails implements GET /auth.
func (h *handlers) GetAuthDetails(ctx context.Context, _ api.GetAuthDetailsRequestObject) (api.GetAuthDetailsResponseObject, error) {
	c := CallerFrom(ctx)
	out := api.GetAuthDetails200JSONResponse{AccountID: c.UserID, AuthMethod: "api_key_user", AuthData: opt(strconv.FormatInt(c.KeyID, 10))}
	if c.OrgID != "" {
		out.AccountID, out.AuthMethod = c.OrgID, "api_key_org"
	}
	return out, nil
}

// GetOrganization implements GET /organizations/{org_id}.
func (h *handlers) GetOrganization(ctx context.Context, req api.GetOrganizationRequestObject) (api.GetOrganizationResponseObject, error) {
	o, err := h.uc.GetOrganization(ctx, CallerFrom(ctx), req.OrgID)
	if err != nil {
		return nil, err
	}
	return api.GetOrganization200JSONResponse(organization(o)), nil
}

func member(m core.Membership) api.Member {
	return api.Member{ID: m.ID, UserID: m.UserID, OrgID: m.OrgID, Role: api.MemberRole(m.Role), JoinedAt: opt(stamp(m.JoinedAt))}
}

// GetOrganizationMembers implements GET /organizations/{org_id}/members.
func (h *handlers) GetOrganizationMembers(ctx context.Context, req api.GetOrganizationMembersRequestObject) (api.GetOrganizationMembersResponseObject, error) {
	order := or(req.Params.SortOrder, api.Desc)
	page, err := h.uc.ListMembers(ctx, CallerFrom(ctx), req.OrgID, control.ListMembers{
		SortBy: string(or(req.Params.SortBy, "")), Ascending: order == api.Asc, Limit: or(req.Params.Limit, 0), Cursor: or(req.Params.Cursor, ""),
	})
	if err != nil {
		return nil, err
	}
	return api.GetOrganizationMembers200JSONResponse{
		Members: each(page.Members, func(m core.Membership) api.MemberWithUser {
			return api.MemberWithUser{Member: member(m), User: api.MemberUser{Email: m.Email}}
		}),
		Pagination: &api.CursorPagination{Next: opt(page.Next), SortBy: opt(page.SortBy), SortOrder: opt(string(order))},
	}, nil
}

// GetOrganizationMember implements GET /organizations/{org_id}/members/{member_id}.
func (h *handlers) GetOrganizationMember(ctx context.Context, req api.GetOrganizationMemberRequestObject) (api.GetOrganizationMemberResponseObject, error) {
	m, err := h.uc.GetMember(ctx, CallerFrom(ctx), req.OrgID, req.MemberID)
	if err != nil {
		return nil, err
	}
	return api.GetOrganizationMember200JSONResponse(member(m)), nil
}

// UpdateOrganizationMember implements PATCH /organizations/{org_id}/members/{member_id}.
func (h *handlers) UpdateOrganizationMember(ctx context.Context, req api.UpdateOrganizationMemberRequestObject) (api.UpdateOrganizationMemberResponseObject, error) {
	m, err := h.uc.UpdateMember(ctx, CallerFrom(ctx), req.OrgID, req.MemberID, string(req.Body.Role))
	if err != nil {
		return nil, err
	}
	return api.UpdateOrganizationMember200JSONResponse(member(m)), nil
}

// RemoveOrganizationMember implements DELETE /organizations/{org_id}/members/{member_id}.
func (h *handlers) RemoveOrganizationMember(ctx context.Context, req api.RemoveOrganizationMemberRequestObject) (api.RemoveOrganizationMemberResponseObject, error) {
	return api.RemoveOrganizationMember200JSONResponse{}, h.uc.RemoveMember(ctx, CallerFrom(ctx), req.OrgID, req.MemberID)
}

// ListOrgAPIKeys implements GET /organizations/{org_id}/api_keys.
func (h *handlers) ListOrgAPIKeys(ctx context.Context, req api.ListOrgAPIKeysRequestObject) (api.ListOrgAPIKeysResponseObject, error) {
	keys, err := h.uc.ListOrgKeys(ctx, CallerFrom(ctx), req.OrgID)
	if err != nil {
		return nil, err
	}
	return api.ListOrgAPIKeys200JSONResponse(each(keys, func(k core.APIKey) api.OrgAPIKey {
		return api.OrgAPIKey{
			ID: k.ID, Name: k.Name, CreatedAt: stamp(k.CreatedAt), CreatedBy: api.APIKeyCreator{ID: keyMaker(k), Name: k.UserName},
			LastUsedAt: optStamp(k.LastUsedAt), LastUsedFromAddr: k.LastUsedFromAddr, ProjectID: opt(k.ProjectID),
		}
	})), nil
}

// CreateOrgAPIKey implements POST /organizations/{org_id}/api_keys.
func (h *handlers) CreateOrgAPIKey(ctx context.Context, req api.CreateOrgAPIKeyRequestObject) (api.CreateOrgAPIKeyResponseObject, error) {
	made, err := h.uc.CreateOrgKey(ctx, creator(ctx, func(made control.KeyCreated, w http.ResponseWriter) error {
		return orgKeyCreated(made).VisitCreateOrgAPIKeyResponse(w)
	}), req.OrgID, req.Body.KeyName, or(req.Body.ProjectID, ""))
	if err != nil {
		return nil, err
	}
	return orgKeyCreated(made), nil
}

func orgKeyCreated(made control.KeyCreated) api.CreateOrgAPIKey200JSONResponse {
	k := made.Key
	return api.CreateOrgAPIKey200JSONResponse{
		ID: k.ID, Key: made.Secret, Name: k.Name, CreatedAt: stamp(k.CreatedAt), CreatedBy: keyMaker(k), ProjectID: opt(k.ProjectID),
	}
}

// RevokeOrgAPIKey implements DELETE /organizations/{org_id}/api_keys/{key_id}.
func (h *handlers) RevokeOrgAPIKey(ctx context.Context, req api.RevokeOrgAPIKeyRequestObject) (api.RevokeOrgAPIKeyResponseObject, error) {
	k, err := h.uc.RevokeOrgKey(ctx, CallerFrom(ctx), req.OrgID, req.KeyID)
	if err != nil {
		return nil, err
	}
	return api.RevokeOrgAPIKey200JSONResponse{
		ID: k.ID, Name: k.Name, CreatedAt: stamp(k.CreatedAt), CreatedBy: keyMaker(k), LastUsedAt: optStamp(k.LastUsedAt),
		LastUsedFromAddr: k.LastUsedFromAddr, Revoked: k.Revoked, ProjectID: opt(k.ProjectID),
	}, nil
}

func keyMaker(k core.APIKey) string {
	if k.UserID == "" {
		return nobody
	}
	return k.UserID
}

// TransferProjectsFromOrgToOrg implements POST /organizations/{source_org_id}/projects/transfer.
func (h *handlers) TransferProjectsFromOrgToOrg(ctx context.Context, req api.TransferProjectsFromOrgToOrgRequestObject) (api.TransferProjectsFromOrgToOrgResponseObject, error) {
	err := h.uc.TransferProjects(ctx, CallerFrom(ctx), req.SourceOrgID, req.Body.DestinationOrgID, req.Body.ProjectIds)
	return api.TransferProjectsFromOrgToOrg200JSONResponse{}, err
}

// TransferProjectsFromUserToOrg implements POST /users/me/projects/transfer.
func (h *handlers) TransferProjectsFromUserToOrg(ctx context.Context, req api.TransferProjectsFromUserToOrgRequestObject) (api.TransferProjectsFromUserToOrgResponseObject, error) {
	err := h.uc.TransferProjects(ctx, CallerFrom(ctx), "", req.Body.DestinationOrgID, req.Body.ProjectIds)
	return api.TransferProjectsFromUserToOrg200JSONResponse{}, err
}

// CreateProjectTransferRequest implements POST /projects/{project_id}/transfer_requests.
func (h *handlers) CreateProjectTransferRequest(ctx context.Context, req api.CreateProjectTransferRequestRequestObject) (api.CreateProjectTransferRequestResponseObject, error) {
	var ttl *int64
	if req.Body != nil {
		ttl = req.Body.TTLSeconds
	}
	made, err := h.uc.RequestTransfer(ctx, creator(ctx, func(made core.TransferRequest, w http.ResponseWriter) error {
		return transferRequest(made).VisitCreateProjectTransferRequestResponse(w)
	}), req.ProjectID, ttl)
	if err != nil {
		return nil, err
	}
	return transferRequest(made), nil
}

func transferRequest(r core.TransferRequest) api.CreateProjectTransferRequest201JSONResponse {
	return api.CreateProjectTransferRequest201JSONResponse{
		ID: r.ID, ProjectID: r.ProjectID, CreatedAt: stamp(r.CreatedAt), ExpiresAt: stamp(r.ExpiresAt),
	}
}

// AcceptProjectTransferRequest implements PUT /projects/{project_id}/transfer_requests/{request_id}.
func (h *handlers) AcceptProjectTransferRequest(ctx context.Context, req api.AcceptProjectTransferRequestRequestObject) (api.AcceptProjectTransferRequestResponseObject, error) {
	orgID := ""
	if req.Body != nil {
		orgID = or(req.Body.OrgID, "")
	}
	err := h.uc.AcceptTransfer(ctx, CallerFrom(ctx), req.ProjectID, req.RequestID, orgID)
	return api.AcceptProjectTransferRequest204Response{}, err
}
