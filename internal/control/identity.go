package control

import (
	"context"
	"crypto/subtle"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/boughdb/bough/internal/auth"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/store"
)

// touchEvery bounds how often a key's last use is written.
const touchEvery = 10 * time.Second

// Authenticate finds the caller behind a key's secret; KindUnauthorized when there is none. addr is the client's address.
func (s *Service) Authenticate(ctx context.Context, secret, addr string) (core.Caller, error) {
	refused := core.Errorf(core.KindUnauthorized, "", "the API key is missing, wrong or revoked; send it as 'Authorization: Bearer <key>'")
	if secret == "" || len(secret) > 256 {
		return core.Caller{}, refused
	}
	// The index compares hashes, whose bytes nobody can choose; what is found is compared again, in constant time.
	hash := auth.HashKey(secret)
	k, err := s.Store.KeyByHash(ctx, hash)
	if err != nil && !core.IsKind(err, core.KindNotFound) {
		return core.Caller{}, err
	}
	if subtle.ConstantTimeCompare(k.Hash, hash) != 1 {
		return core.Caller{}, refused
	}
	c := core.Caller{KeyID: k.ID, OrgID: k.OrgID, ProjectID: k.ProjectID}
	if k.OrgID != "" {
		c.OrgIDs = []string{k.OrgID}
	} else {
		c.UserID, c.UserName, c.UserEmail = k.UserID, k.UserName, k.UserEmail
		list, err := s.Store.UserMemberships(ctx, k.UserID)
		if err != nil {
			return core.Caller{}, err
		}
		setMemberships(&c, list)
	}
	if k.LastUsedAt == nil || time.Since(*k.LastUsedAt) > touchEvery {
		if err := s.Store.TouchKey(ctx, k.ID, hostOnly(addr)); err != nil {
			return core.Caller{}, err
		}
	}
	return c, nil
}

// ListKeys returns the caller's personal keys.
func (s *Service) ListKeys(ctx context.Context, c core.Caller) ([]core.APIKey, error) {
	if err := apart(c); err != nil {
		return nil, err
	}
	keys, err := s.Store.PersonalKeys(ctx, c.UserID)
	for i := range keys {
		keys[i].UserName = c.UserName
	}
	return keys, err
}

// CreateKey makes a personal key for the caller.
func (s *Service) CreateKey(ctx context.Context, c core.Caller, name string) (KeyCreated, error) {
	if err := apart(c); err != nil {
		return KeyCreated{}, err
	}
	return s.createKey(ctx, c, core.APIKey{Name: name})
}

// createKey makes a key for its caller. What is stored for an Idempotency-Key holds the secret encrypted with the caller's own
// key, which the server does not have.
func (s *Service) createKey(ctx context.Context, c core.Caller, k core.APIKey) (made KeyCreated, err error) {
	k.UserID, k.UserName = c.UserID, c.UserName
	err = s.Store.Tx(ctx, func(q store.Q) error {
		if k.ProjectID != "" {
			p, err := q.ShareProject(ctx, k.ProjectID)
			if err != nil {
				return err
			}
			if p.OrgID != k.OrgID {
				return projectNotFound(k.ProjectID)
			}
		}
		if made, err = insertKey(ctx, q, k); err != nil {
			return err
		}
		return keep(ctx, q, c, made)
	})
	return made, err
}

func insertKey(ctx context.Context, q store.Q, k core.APIKey) (KeyCreated, error) {
	if err := checkName("key_name", k.Name, 64); err != nil {
		return KeyCreated{}, err
	}
	secret := core.NewKeySecret()
	k.Hash = auth.HashKey(secret)
	saved, err := q.InsertKey(ctx, k)
	saved.UserName = k.UserName
	return KeyCreated{Key: saved, Secret: secret}, err
}

// RevokeKey revokes a personal key of the caller.
func (s *Service) RevokeKey(ctx context.Context, c core.Caller, id int64) (core.APIKey, error) {
	if err := apart(c); err != nil {
		return core.APIKey{}, err
	}
	k, err := s.Store.RevokePersonalKey(ctx, id, c.UserID)
	if core.IsKind(err, core.KindNotFound) {
		return k, core.NotFoundf("API key %d not found among your keys", id)
	}
	k.UserName = c.UserName
	return k, err
}

// Me returns the caller's user; an organization's key gets KindNotFound.
func (s *Service) Me(ctx context.Context, c core.Caller) (core.User, error) {
	if err := apart(c); err != nil {
		return core.User{}, err
	}
	return s.Store.User(ctx, c.UserID)
}

// MyOrganizations returns the organizations that the caller's user is a member of.
func (s *Service) MyOrganizations(ctx context.Context, c core.Caller) ([]core.Organization, error) {
	if err := apart(c); err != nil {
		return nil, err
	}
	return s.Store.UserOrganizations(ctx, c.UserID)
}

// Regions returns the regions; the first is the default.
func (s *Service) Regions() []Region {
	return []Region{{ID: s.Addressing.Region, Name: s.Addressing.Region, Default: true}}
}

// Admin is what `bough admin` does on the server's own machine, without a key.
type Admin struct {
	Store   *store.Store
	Sealer  *auth.Sealer
	BaseURL string // of the API, without a path; "" when no server has run yet
}

// Invitations returns the open invitations with their links.
func (a Admin) Invitations(ctx context.Context) ([]InvitationMade, error) {
	list, err := a.Store.OpenInvitations(ctx)
	out := make([]InvitationMade, len(list))
	for i, inv := range list {
		out[i] = InvitationMade{inv, InvitationLink(a.Sealer, a.BaseURL, inv.ID)}
	}
	return out, err
}

// First makes the first user, organization and key, unless a user exists. With a user it makes another key for the oldest.
func (a Admin) First(ctx context.Context) (core.User, core.Organization, KeyCreated, error) {
	var (
		user core.User
		org  core.Organization
		key  KeyCreated
	)
	err := a.Store.Tx(ctx, func(q store.Q) error {
		users, err := q.Users(ctx)
		if err != nil {
			return err
		}
		if len(users) == 0 {
			user, org, err = addUser(ctx, q, "admin@localhost", "Admin")
		} else {
			user = users[0]
			var orgs []core.Organization
			if orgs, err = q.UserOrganizations(ctx, user.ID); err == nil && len(orgs) > 0 {
				org = orgs[0]
			}
		}
		if err != nil {
			return err
		}
		key, err = insertKey(ctx, q, core.APIKey{Name: "bough admin", UserID: user.ID, UserName: user.Name})
		return err
	})
	return user, org, key, err
}

// AddUser makes a user with an organization of their own.
func (a Admin) AddUser(ctx context.Context, email, name string) (user core.User, org core.Organization, err error) {
	err = a.Store.Tx(ctx, func(q store.Q) error {
		user, org, err = addUser(ctx, q, email, name)
		return err
	})
	return user, org, err
}

func addUser(ctx context.Context, q store.Q, email, name string) (core.User, core.Organization, error) {
	if err := checkName("name", name, 128); err != nil {
		return core.User{}, core.Organization{}, err
	}
	email, err := cleanEmail(email)
	if err != nil {
		return core.User{}, core.Organization{}, err
	}
	user, err := q.InsertUser(ctx, core.NewUUID(), email, name)
	if err != nil {
		return user, core.Organization{}, err
	}
	org, err := addOrg(ctx, q, name+"'s organization", user.ID)
	return user, org, err
}

func addOrg(ctx context.Context, q store.Q, name, adminID string) (core.Organization, error) {
	if err := checkName("name", name, 128); err != nil {
		return core.Organization{}, err
	}
	id := core.NewOrgID()
	org, err := q.InsertOrganization(ctx, id, strings.TrimPrefix(id, "org-"), name)
	if err != nil {
		return org, err
	}
	return org, q.SetMembership(ctx, org.ID, adminID, core.RoleAdmin)
}

// AddOrg makes an organization whose admin is the user with that e-mail address.
func (a Admin) AddOrg(ctx context.Context, name, email string) (org core.Organization, err error) {
	err = a.Store.Tx(ctx, func(q store.Q) error {
		user, err := q.UserByEmail(ctx, strings.ToLower(email))
		if err != nil {
			return err
		}
		org, err = addOrg(ctx, q, name, user.ID)
		return err
	})
	return org, err
}

// SetMember makes the user with that e-mail address a member of an organization with a role, or removes it with role "".
func (a Admin) SetMember(ctx context.Context, orgID, email, role string) error {
	if role != "" && role != core.RoleAdmin && role != core.RoleMember {
		return core.Invalidf("role must be %s or %s", core.RoleAdmin, core.RoleMember)
	}
	return a.Store.Tx(ctx, func(q store.Q) error {
		if _, err := q.LockOrganization(ctx, orgID); err != nil {
			return err
		}
		user, err := q.UserByEmail(ctx, strings.ToLower(email))
		if err != nil {
			return err
		}
		m, err := q.MemberByUser(ctx, orgID, user.ID)
		if core.IsKind(err, core.KindNotFound) && role != "" {
			return q.SetMembership(ctx, orgID, user.ID, role)
		}
		if err != nil {
			return err
		}
		_, err = changeMember(ctx, q, orgID, m.ID, role)
		return err
	})
}

// AddKey makes a key: personal for the user with that e-mail address, or, with orgID, of that organization, which
// projectID may narrow to one of its projects.
func (a Admin) AddKey(ctx context.Context, name, email, orgID, projectID string) (key KeyCreated, err error) {
	err = a.Store.Tx(ctx, func(q store.Q) error {
		k := core.APIKey{Name: name, OrgID: orgID, ProjectID: projectID}
		if orgID != "" {
			if _, err := q.Organization(ctx, orgID); err != nil {
				return err
			}
			if projectID != "" {
				p, err := q.Project(ctx, projectID)
				if err != nil {
					return err
				}
				if p.OrgID != orgID {
					return core.Invalidf("project %s does not belong to organization %s", projectID, orgID)
				}
			}
		} else {
			if projectID != "" {
				return core.Invalidf("a key for one project is an organization's: name the organization")
			}
			user, err := q.UserByEmail(ctx, strings.ToLower(email))
			if err != nil {
				return err
			}
			k.UserID, k.UserName = user.ID, user.Name
		}
		key, err = insertKey(ctx, q, k)
		return err
	})
	return key, err
}

// checkName refuses an empty or overlong name, in characters, and control characters.
func checkName(field, name string, limit int) error {
	switch {
	case strings.TrimSpace(name) == "":
		return core.Invalidf("%s must not be empty", field)
	case !utf8.ValidString(name):
		return core.Invalidf("%s must be valid UTF-8", field)
	case utf8.RuneCountInString(name) > limit:
		return core.Invalidf("%s is longer than %d characters", field, limit)
	case strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return core.Invalidf("%s must not hold control characters", field)
	}
	return nil
}
