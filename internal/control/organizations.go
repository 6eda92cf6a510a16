package control

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/boughdb/bough/internal/auth"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/store"
)

// GetOrganization returns one organization.
func (s *Service) GetOrganization(ctx context.Context, c core.Caller, id string) (core.Organization, error) {
	if err := inOrg(c, c.Operation, id); err != nil {
		return core.Organization{}, err
	}
	return s.Store.Organization(ctx, id)
}

// ListMembers are the parameters of Service.ListMembers.
type ListMembers struct {
	SortBy    string // email, role or joined_at; "" is joined_at
	Ascending bool
	Limit     int    // 0: everything
	Cursor    string // from the page before
}

// MemberPage is a page of members.
type MemberPage struct {
	Members []core.Membership
	SortBy  string
	Next    string // "" on the last page
}

// memberCursor is the place of a page's last member: the value sorted by, and the id that breaks ties.
type memberCursor struct {
	Key string `json:"k"`
	ID  string `json:"id"`
}

// ListMembers returns a page of an organization's members.
func (s *Service) ListMembers(ctx context.Context, c core.Caller, orgID string, p ListMembers) (MemberPage, error) {
	if err := inOrg(c, c.Operation, orgID); err != nil {
		return MemberPage{}, err
	}
	page := MemberPage{SortBy: cmp.Or(p.SortBy, "joined_at")}
	place := func(m core.Membership) memberCursor {
		switch page.SortBy {
		case "email":
			return memberCursor{m.Email, m.ID}
		case "role":
			return memberCursor{m.Role, m.ID}
		}
		return memberCursor{m.JoinedAt.UTC().Format("2006-01-02T15:04:05.000000"), m.ID}
	}
	order := func(a, b memberCursor) int {
		n := cmp.Or(strings.Compare(a.Key, b.Key), strings.Compare(a.ID, b.ID))
		if !p.Ascending {
			n = -n
		}
		return n
	}
	list, err := s.Store.Members(ctx, orgID)
	if err != nil {
		return page, err
	}
	slices.SortFunc(list, func(a, b core.Membership) int { return order(place(a), place(b)) })
	if p.Cursor != "" {
		var after memberCursor
		raw, err := base64.RawURLEncoding.DecodeString(p.Cursor)
		if err != nil || json.Unmarshal(raw, &after) != nil || after.ID == "" {
			return page, core.Invalidf("cursor is not one that this list returned; start again without it")
		}
		list = slices.DeleteFunc(list, func(m core.Membership) bool { return order(place(m), after) <= 0 })
	}
	if p.Limit > 0 && len(list) > p.Limit {
		list = list[:p.Limit]
		raw, err := json.Marshal(place(list[p.Limit-1]))
		if err != nil {
			return page, core.Wrap(err, "control.members", "")
		}
		page.Next = base64.RawURLEncoding.EncodeToString(raw)
	}
	page.Members = list
	return page, nil
}

// GetMember returns one member of an organization.
func (s *Service) GetMember(ctx context.Context, c core.Caller, orgID, id string) (core.Membership, error) {
	if err := inOrg(c, c.Operation, orgID); err != nil {
		return core.Membership{}, err
	}
	return s.Store.Member(ctx, orgID, strings.ToLower(id))
}

// UpdateMember gives a member another role.
func (s *Service) UpdateMember(ctx context.Context, c core.Caller, orgID, id, role string) (core.Membership, error) {
	if role != core.RoleAdmin && role != core.RoleMember {
		return core.Membership{}, core.Invalidf("role must be %s or %s", core.RoleAdmin, core.RoleMember)
	}
	return s.changeMember(ctx, c, orgID, id, role)
}

// RemoveMember ends a membership, and with it what the user's personal keys may do in the organization.
func (s *Service) RemoveMember(ctx context.Context, c core.Caller, orgID, id string) error {
	_, err := s.changeMember(ctx, c, orgID, id, "")
	return err
}

// changeMember gives a member another role, or removes it when role is "". An organization keeps an admin: changes to its
// members come one after the other, and each looks again whether its caller is one.
func (s *Service) changeMember(ctx context.Context, c core.Caller, orgID, id, role string) (m core.Membership, err error) {
	if err := inOrg(c, c.Operation, orgID); err != nil {
		return m, err
	}
	err = s.Store.Tx(ctx, func(q store.Q) error {
		if _, err := q.LockOrganization(ctx, orgID); err != nil {
			return err
		}
		now, err := q.UserMemberships(ctx, c.UserID)
		if err != nil {
			return err
		}
		c := c
		setMemberships(&c, now)
		if err := inOrg(c, c.Operation, orgID); err != nil {
			return err
		}
		m, err = changeMember(ctx, q, orgID, strings.ToLower(id), role)
		return err
	})
	return m, err
}

// changeMember is the part that the operator's commands share; the caller holds the organization's lock.
func changeMember(ctx context.Context, q store.Q, orgID, id, role string) (core.Membership, error) {
	m, err := q.Member(ctx, orgID, id)
	if err != nil || m.Role == role {
		return m, err
	}
	if m.Role == core.RoleAdmin {
		switch n, err := q.Admins(ctx, orgID); {
		case err != nil:
			return m, err
		case n <= 1:
			return m, core.Errorf(core.KindUnprocessable, "LAST_ADMIN",
				"%s is the last admin of the organization; make another member an admin first", m.Email)
		}
	}
	if role == "" {
		return m, q.DeleteMember(ctx, orgID, id)
	}
	m.Role = role
	return m, q.SetMemberRole(ctx, orgID, id, role)
}

// setMemberships fills in what a personal key reaches.
func setMemberships(c *core.Caller, list []core.Membership) {
	c.OrgIDs, c.AdminOf = nil, nil
	for _, m := range list {
		c.OrgIDs = append(c.OrgIDs, m.OrgID)
		if m.Role == core.RoleAdmin {
			c.AdminOf = append(c.AdminOf, m.OrgID)
		}
	}
}

// ListOrgKeys returns the keys of an organization and of its projects.
func (s *Service) ListOrgKeys(ctx context.Context, c core.Caller, orgID string) ([]core.APIKey, error) {
	if err := inOrg(c, c.Operation, orgID); err != nil {
		return nil, err
	}
	return s.Store.OrgKeys(ctx, orgID)
}

// CreateOrgKey makes a key of an organization; projectID narrows it to one of its projects.
func (s *Service) CreateOrgKey(ctx context.Context, c core.Caller, orgID, name, projectID string) (made KeyCreated, err error) {
	what := c.Operation
	if projectID == "" {
		what = auth.OrgKeyForAll
	}
	if err := inOrg(c, what, orgID); err != nil {
		return made, err
	}
	return s.createKey(ctx, c, core.APIKey{Name: name, OrgID: orgID, ProjectID: projectID})
}

// RevokeOrgKey revokes a key of an organization or of one of its projects.
func (s *Service) RevokeOrgKey(ctx context.Context, c core.Caller, orgID string, id int64) (core.APIKey, error) {
	if err := inOrg(c, c.Operation, orgID); err != nil {
		return core.APIKey{}, err
	}
	k, err := s.Store.OrgKey(ctx, orgID, id)
	if core.IsKind(err, core.KindNotFound) {
		return k, core.NotFoundf("API key %d not found in organization %s", id, orgID)
	}
	if err != nil {
		return k, err
	}
	if k.ProjectID == "" || k.UserID != c.UserID {
		if err := inOrg(c, auth.RevokeAnyOrgKey, orgID); err != nil {
			return k, err
		}
	}
	return s.Store.RevokeKey(ctx, id)
}

// maxTransferTTL bounds how long a request to transfer a project can be accepted.
const (
	defaultTransferTTL = 24 * time.Hour
	maxTransferTTL     = 30 * 24 * time.Hour
)

// TransferProjects gives projects of one organization to another: all of them, or none. With source "" each of them may
// belong to any organization that the caller is an admin of.
func (s *Service) TransferProjects(ctx context.Context, c core.Caller, source, destination string, ids []string) error {
	if source == "" {
		if err := apart(c); err != nil {
			return err
		}
	} else if err := inOrg(c, c.Operation, source); err != nil {
		return err
	}
	if err := inOrg(c, auth.TransferInto, destination); err != nil {
		return err
	}
	if source == destination {
		return core.Invalidf("destination_org_id must be another organization than the source")
	}
	// In one order, so that two transfers do not wait for each other in a circle.
	ids = slices.Compact(slices.Sorted(slices.Values(ids)))
	return s.Store.Tx(ctx, func(q store.Q) error {
		for _, id := range ids {
			p, err := q.LockProject(ctx, id)
			if err != nil {
				return err
			}
			switch {
			case source == "" && !slices.Contains(c.OrgIDs, p.OrgID), source != "" && p.OrgID != source:
				return projectNotFound(id)
			case source == "" && p.OrgID != destination:
				if err := auth.Permit("transferProjectsFromOrgToOrg", auth.In(c, p.OrgID), projectNotFound(id)); err != nil {
					return err
				}
			}
			if p.OrgID == destination {
				continue
			}
			if err := q.MoveProject(ctx, id, destination); err != nil {
				return err
			}
		}
		return nil
	})
}

// RequestTransfer makes a request that whoever knows its id can accept until it expires; ttl is in seconds, nil a day.
func (s *Service) RequestTransfer(ctx context.Context, c core.Caller, projectID string, ttl *int64) (out core.TransferRequest, err error) {
	if _, err := s.project(ctx, c, projectID); err != nil {
		return out, err
	}
	last := defaultTransferTTL
	if ttl != nil {
		if *ttl < 1 || *ttl > int64(maxTransferTTL/time.Second) {
			return out, core.Invalidf("ttl_seconds must be between 1 and %d", int64(maxTransferTTL/time.Second))
		}
		last = time.Duration(*ttl) * time.Second
	}
	err = s.Store.Tx(ctx, func(q store.Q) error {
		if _, err := q.ShareProject(ctx, projectID); err != nil {
			return err
		}
		if out, err = q.InsertTransferRequest(ctx, projectID, time.Now().Add(last)); err != nil {
			return err
		}
		return keep(ctx, q, c, out)
	})
	return out, err
}

// AcceptTransfer takes a project over, into the caller's first organization when orgID is "".
func (s *Service) AcceptTransfer(ctx context.Context, c core.Caller, projectID, requestID, orgID string) error {
	if err := apart(c); err != nil {
		return err
	}
	if orgID == "" && len(c.OrgIDs) > 0 {
		orgID = c.OrgIDs[0]
	}
	if err := inOrg(c, auth.TransferInto, orgID); err != nil {
		return err
	}
	missing := core.NotFoundf("transfer request %q not found for project %q", clip(requestID), clip(projectID))
	if !core.ValidID(projectID) || !core.ValidID(requestID) {
		return missing
	}
	return s.Store.Tx(ctx, func(q store.Q) error {
		p, err := q.LockProject(ctx, projectID)
		if err == nil {
			var r core.TransferRequest
			if r, err = q.TransferRequest(ctx, projectID, requestID); err == nil && !time.Now().Before(r.ExpiresAt) {
				return core.Errorf(core.KindGone, "", "the transfer request expired; ask for another one")
			}
		}
		if core.IsKind(err, core.KindNotFound) {
			return missing
		}
		if err != nil {
			return err
		}
		if p.OrgID == orgID {
			return core.Errorf(core.KindUnprocessable, "", "project %s belongs to organization %s already", projectID, orgID)
		}
		return q.MoveProject(ctx, projectID, orgID)
	})
}
