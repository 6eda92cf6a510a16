package control

import (
	"context"
	"slices"

	"github.com/boughdb/bough/internal/auth"
	"github.com/boughdb/bough/internal/core"
)

// project returns a project on which the caller may do what it calls: KindNotFound when it may not see it, KindForbidden
// when the rules do not let it.
func (s *Service) project(ctx context.Context, c core.Caller, id string) (core.Project, error) {
	if !core.ValidID(id) {
		return core.Project{}, projectNotFound(id)
	}
	p, err := s.Store.Project(ctx, id)
	if err != nil {
		return core.Project{}, err
	}
	guest := false
	if c.UserID != "" && !slices.Contains(c.OrgIDs, p.OrgID) {
		if guest, err = s.Store.Shared(ctx, p.ID, c.UserEmail); err != nil {
			return core.Project{}, err
		}
	}
	if err := auth.Permit(c.Operation, auth.On(c, p.ID, p.OrgID, guest), projectNotFound(id)); err != nil {
		return core.Project{}, err
	}
	return p, nil
}

func projectNotFound(id string) error {
	return core.NotFoundf("project %q not found", clip(id))
}

// inOrg checks that the caller may do something in an organization: what it calls, or one of the finer things of the rules.
func inOrg(c core.Caller, what, orgID string) error {
	return auth.Permit(what, auth.In(c, orgID), core.NotFoundf("organization %q not found", clip(orgID)))
}

// apart checks a call that names neither an organization nor a project.
func apart(c core.Caller) error {
	return auth.Permit(c.Operation, auth.Apart(c), core.Errorf(core.KindUnauthorized, "", "an API key is needed"))
}
