package httpd

import (
	"context"
	"net/http"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/internal/control"
	"github.com/boughdb/bough/internal/core"
)

// ListAPIKeys implements GET /api_keys.
func (h *handlers) ListAPIKeys(ctx context.Context, _ api.ListAPIKeysRequestObject) (api.ListAPIKeysResponseObject, error) {
	keys, err := h.uc.ListKeys(ctx, CallerFrom(ctx))
	if err != nil {
		return nil, err
	}
	return api.ListAPIKeys200JSONResponse(each(keys, func(k core.APIKey) api.APIKey {
		return api.APIKey{
			ID: k.ID, Name: k.Name, CreatedAt: stamp(k.CreatedAt),
			CreatedBy:  api.APIKeyCreator{ID: k.UserID, Name: k.UserName},
			LastUsedAt: optStamp(k.LastUsedAt), LastUsedFromAddr: k.LastUsedFromAddr,
		}
	})), nil
}

// CreateAPIKey implements POST /api_keys.
func (h *handlers) CreateAPIKey(ctx context.Context, req api.CreateAPIKeyRequestObject) (api.CreateAPIKeyResponseObject, error) {
	made, err := h.uc.CreateKey(ctx, creator(ctx, func(made control.KeyCreated, w http.ResponseWriter) error {
		return keyCreated(made).VisitCreateAPIKeyResponse(w)
	}), req.Body.KeyName)
	if err != nil {
		return nil, err
	}
	return keyCreated(made), nil
}

func keyCreated(made control.KeyCreated) api.CreateAPIKey200JSONResponse {
	return api.CreateAPIKey200JSONResponse{
		ID: made.Key.ID, Key: made.Secret, Name: made.Key.Name, CreatedAt: stamp(made.Key.CreatedAt), CreatedBy: made.Key.UserID,
	}
}

// RevokeAPIKey implements DELETE /api_keys/{key_id}.
func (h *handlers) RevokeAPIKey(ctx context.Context, req api.RevokeAPIKeyRequestObject) (api.RevokeAPIKeyResponseObject, error) {
	k, err := h.uc.RevokeKey(ctx, CallerFrom(ctx), req.KeyID)
	if err != nil {
		return nil, err
	}
	return api.RevokeAPIKey200JSONResponse{
		ID: k.ID, Name: k.Name, CreatedAt: stamp(k.CreatedAt), CreatedBy: k.UserID,
		LastUsedAt: optStamp(k.LastUsedAt), LastUsedFromAddr: k.LastUsedFromAddr, Revoked: k.Revoked,
	}, nil
}

// GetCurrentUserInfo implements GET /users/me.
func (h *handlers) GetCurrentUserInfo(ctx context.Context, _ api.GetCurrentUserInfoRequestObject) (api.GetCurrentUserInfoResponseObject, error) {
	u, err := h.uc.Me(ctx, CallerFrom(ctx))
	if err != nil {
		return nil, err
	}
	return api.GetCurrentUserInfo200JSONResponse{
		ID: u.ID, Email: u.Email, Login: u.Email, Name: u.Name, LastName: u.LastName,
		ProjectsLimit: noLimit, BranchesLimit: noLimit, MaxAutoscalingLimit: h.maxCU,
		AuthAccounts: []api.AuthAccount{}, Plan: plan,
	}, nil
}

// GetCurrentUserOrganizations implements GET /users/me/organizations.
func (h *handlers) GetCurrentUserOrganizations(ctx context.Context, _ api.GetCurrentUserOrganizationsRequestObject) (api.GetCurrentUserOrganizationsResponseObject, error) {
	list, err := h.uc.MyOrganizations(ctx, CallerFrom(ctx))
	if err != nil {
		return nil, err
	}
	return api.GetCurrentUserOrganizations200JSONResponse{Organizations: each(list, organization)}, nil
}

// GetActiveRegions implements GET /regions.
func (h *handlers) GetActiveRegions(context.Context, api.GetActiveRegionsRequestObject) (api.GetActiveRegionsResponseObject, error) {
	return api.GetActiveRegions200JSONResponse{Regions: each(h.uc.Regions(), func(r control.Region) api.Region {
		return api.Region{RegionID: r.ID, Name: r.Name, Default: r.Default, GeoLat: "0", GeoLong: "0"}
	})}, nil
}

func organization(o core.Organization) api.Organization {
	return api.Organization{
		ID: o.ID, Name: o.Name, Handle: o.Handle, Plan: plan, ManagedBy: creationSource,
		CreatedAt: stamp(o.CreatedAt), UpdatedAt: stamp(o.UpdatedAt),
	}
}
