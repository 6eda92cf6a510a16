package control

import (
	"context"
	"net/mail"
	"net/url"
	"strings"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/store"
)

// cleanEmail checks an e-mail address (RFC 5322, without a display name) and returns it as it is stored.
func cleanEmail(email string) (string, error) {
	a, err := mail.ParseAddress(email)
	if err != nil || a.Address != email || a.Name != "" || len(email) > 254 {
		return "", core.Invalidf("%q is not an e-mail address", clip(email))
	}
	return strings.ToLower(email), nil
}

// ListSharedProjects returns a page of the projects that others share with the caller.
func (s *Service) ListSharedProjects(ctx context.Context, c core.Caller, p ListProjects) (ProjectPage, error) {
	if err := apart(c); err != nil {
		return ProjectPage{}, err
	}
	limit, err := pageSize(p.Limit)
	if err != nil {
		return ProjectPage{}, err
	}
	list, err := s.Store.SharedProjects(ctx, c.UserEmail, store.ProjectFilter{OrgIDs: c.OrgIDs, Search: p.Search, After: p.Cursor, Limit: limit})
	if err != nil {
		return ProjectPage{}, err
	}
	return s.projectPage(ctx, list, p.Cursor)
}

// ListPermissions returns with whom a project is shared.
func (s *Service) ListPermissions(ctx context.Context, c core.Caller, projectID string) ([]core.ProjectPermission, error) {
	if _, err := s.project(ctx, c, projectID); err != nil {
		return nil, err
	}
	return s.Store.Permissions(ctx, projectID)
}

// GrantPermission shares a project with whoever has an e-mail address, now or later.
func (s *Service) GrantPermission(ctx context.Context, c core.Caller, projectID, email string) (out core.ProjectPermission, err error) {
	if _, err := s.project(ctx, c, projectID); err != nil {
		return out, err
	}
	if email, err = cleanEmail(email); err != nil {
		return out, err
	}
	err = s.Store.Tx(ctx, func(q store.Q) error {
		if _, err := q.ShareProject(ctx, projectID); err != nil {
			return err
		}
		if out, err = q.Share(ctx, projectID, email); err != nil {
			return err
		}
		return keep(ctx, q, c, out)
	})
	return out, err
}

// RevokePermission ends the sharing of a project with someone.
func (s *Service) RevokePermission(ctx context.Context, c core.Caller, projectID, id string) (core.ProjectPermission, error) {
	if _, err := s.project(ctx, c, projectID); err != nil {
		return core.ProjectPermission{}, err
	}
	return s.Store.Unshare(ctx, projectID, strings.ToLower(id))
}

// ListJWKS returns a project's JWKS.
func (s *Service) ListJWKS(ctx context.Context, c core.Caller, projectID string) ([]core.JWKS, error) {
	if _, err := s.project(ctx, c, projectID); err != nil {
		return nil, err
	}
	return s.Store.JWKS(ctx, projectID)
}

// AddJWKS stores where the keys of a project's tokens are published. Nothing reads them yet.
func (s *Service) AddJWKS(ctx context.Context, c core.Caller, j core.JWKS) (out core.JWKS, err error) {
	if _, err := s.project(ctx, c, j.ProjectID); err != nil {
		return out, err
	}
	u, err := url.Parse(j.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" || len(j.URL) > 2048 {
		return out, core.Invalidf("jwks_url must be an https URL of at most 2048 characters")
	}
	for _, err := range []error{checkName("provider_name", j.ProviderName, 256), checkOptional("jwt_audience", j.Audience, 256)} {
		if err != nil {
			return out, err
		}
	}
	if len(j.RoleNames) > 10 {
		return out, core.Invalidf("role_names must have at most 10 entries")
	}
	for _, name := range j.RoleNames {
		if err := checkName("role_names", name, 63); err != nil {
			return out, err
		}
	}
	j.ID = core.NewUUID()
	err = s.Store.Tx(ctx, func(q store.Q) error {
		if _, err := q.ShareProject(ctx, j.ProjectID); err != nil {
			return err
		}
		if j.BranchID != "" {
			if _, err := q.LockBranch(ctx, j.ProjectID, j.BranchID); err != nil {
				return err
			}
		}
		if out, err = q.InsertJWKS(ctx, j); err != nil {
			return err
		}
		return keep(ctx, q, c, out)
	})
	return out, err
}

// DeleteJWKS removes one of a project's JWKS.
func (s *Service) DeleteJWKS(ctx context.Context, c core.Caller, projectID, id string) (core.JWKS, error) {
	if _, err := s.project(ctx, c, projectID); err != nil {
		return core.JWKS{}, err
	}
	return s.Store.DeleteJWKS(ctx, projectID, strings.ToLower(id))
}

// checkOptional is checkName for what may be left out.
func checkOptional(field, value string, limit int) error {
	if value == "" {
		return nil
	}
	return checkName(field, value, limit)
}
