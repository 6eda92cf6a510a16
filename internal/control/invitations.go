package control

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/boughdb/bough/internal/auth"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/store"
)

const (
	invitationTTL  = 7 * 24 * time.Hour
	maxInvitations = 50 // of one call
	letterLimit    = 2 * time.Minute
	letterTries    = 12 // with growing pauses: about a day
	letterPoll     = time.Minute
)

// Mailer sends one letter and returns when a server has taken it.
type Mailer interface {
	Send(ctx context.Context, to, subject, text string) error
}

// Post is how invitations reach people.
type Post struct {
	BaseURL string // where clients reach the server, without a path
	Mailer  Mailer // nil: links are shown to the admin who invites
}

// Invite is one invitation to make.
type Invite struct{ Email, Role string }

// InvitationMade is an invitation; Link is only shown when no letter carries it.
type InvitationMade struct {
	core.Invitation
	Link string
}

// invitationToken is what the link of an invitation holds. It is made from the server's key when it is needed, and only its
// hash is stored.
func invitationToken(sealer *auth.Sealer, id string) string {
	return hex.EncodeToString(sealer.Derive("invitation " + id))
}

// InvitationLink is where an invitation is accepted. The token is in the query, which no log has.
func InvitationLink(sealer *auth.Sealer, base, id string) string {
	return base + "/invitation?" + url.Values{"token": {invitationToken(sealer, id)}}.Encode()
}

// ListInvitations returns the open and the accepted invitations of an organization.
func (s *Service) ListInvitations(ctx context.Context, c core.Caller, orgID string) ([]core.Invitation, error) {
	if err := inOrg(c, c.Operation, orgID); err != nil {
		return nil, err
	}
	return s.Store.Invitations(ctx, orgID)
}

// CreateInvitations invites people: all of them or none. Whoever has an account is a member at once.
func (s *Service) CreateInvitations(ctx context.Context, c core.Caller, orgID string, list []Invite) ([]InvitationMade, error) {
	if err := inOrg(c, c.Operation, orgID); err != nil {
		return nil, err
	}
	if len(list) == 0 || len(list) > maxInvitations {
		return nil, core.Invalidf("invitations must have between 1 and %d entries", maxInvitations)
	}
	seen := map[string]bool{}
	for i, in := range list {
		email, err := cleanEmail(in.Email)
		if err != nil {
			return nil, err
		}
		if seen[email] {
			return nil, core.Invalidf("%s is invited twice", email)
		}
		seen[email], list[i].Email = true, email
	}
	var out []InvitationMade
	err := s.Store.Tx(ctx, func(q store.Q) error {
		out = nil
		if _, err := q.LockOrganization(ctx, orgID); err != nil {
			return err
		}
		for _, in := range list {
			now := time.Now()
			inv := core.Invitation{ID: core.NewUUID(), OrgID: orgID, Email: in.Email, Role: in.Role, InvitedBy: c.UserID, ExpiresAt: now.Add(invitationTTL)}
			inv.TokenHash = auth.HashKey(invitationToken(s.Sealer, inv.ID))
			if s.post.Mailer != nil {
				inv.MailDueAt = &now
			}
			user, err := q.UserByEmail(ctx, in.Email)
			switch {
			case err == nil:
				if _, err := q.MemberByUser(ctx, orgID, user.ID); err == nil {
					return core.Errorf(core.KindConflict, "MEMBER_ALREADY_EXISTS", "%s is a member of the organization already", in.Email)
				} else if !core.IsKind(err, core.KindNotFound) {
					return err
				}
				if err := q.SetMembership(ctx, orgID, user.ID, in.Role); err != nil {
					return err
				}
				inv.AcceptedAt = &now
			case !core.IsKind(err, core.KindNotFound):
				return err
			}
			made := InvitationMade{}
			if made.Invitation, err = q.Invite(ctx, inv); err != nil {
				return err
			}
			if s.post.Mailer == nil && inv.AcceptedAt == nil {
				made.Link = InvitationLink(s.Sealer, s.post.BaseURL, inv.ID)
			}
			out = append(out, made)
		}
		return keep(ctx, q, c, out)
	})
	if err == nil && s.post.Mailer != nil {
		select {
		case s.letters <- struct{}{}:
		default: // it looks anyway
		}
	}
	return out, err
}

// Invitation returns the open invitation of a link.
func (s *Service) Invitation(ctx context.Context, token string) (core.Invitation, error) {
	i, err := s.Store.InvitationByToken(ctx, auth.HashKey(token))
	return i, invitationGone(err)
}

func invitationGone(err error) error {
	if core.IsKind(err, core.KindNotFound) {
		return core.NotFoundf("this invitation was accepted, replaced or taken back, or it expired; ask for another one")
	}
	return err
}

// Welcome is what accepting an invitation makes. Key is nil for who had an account meanwhile.
type Welcome struct {
	User  core.User
	OrgID string
	Key   *KeyCreated
}

// AcceptInvitation makes a user, a membership and a first key. A link works once.
func (s *Service) AcceptInvitation(ctx context.Context, token, name string) (out Welcome, err error) {
	if err := checkName("name", name, 128); err != nil {
		return out, err
	}
	err = s.Store.Tx(ctx, func(q store.Q) error {
		inv, err := q.LockInvitation(ctx, auth.HashKey(token))
		if err != nil {
			return invitationGone(err)
		}
		out = Welcome{OrgID: inv.OrgID}
		out.User, err = q.UserByEmail(ctx, inv.Email)
		if core.IsKind(err, core.KindNotFound) {
			if out.User, err = q.InsertUser(ctx, core.NewUUID(), inv.Email, name); err != nil {
				return err
			}
			key, err := insertKey(ctx, q, core.APIKey{Name: "first key", UserID: out.User.ID, UserName: name})
			if err != nil {
				return err
			}
			out.Key = &key
		} else if err != nil {
			return err
		}
		if _, err := q.MemberByUser(ctx, inv.OrgID, out.User.ID); core.IsKind(err, core.KindNotFound) {
			err = q.SetMembership(ctx, inv.OrgID, out.User.ID, inv.Role)
			if err != nil {
				return err
			}
		} else if err != nil {
			return err
		}
		return q.AcceptInvitation(ctx, inv.ID)
	})
	return out, err
}

// StartPost says how invitations reach people and sends what is due until Stop. It is called once, before the first call.
func (s *Service) StartPost(ctx context.Context, p Post) {
	s.post = p
	if p.Mailer == nil {
		return
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.stopPost = cancel
	s.work.Go(func() {
		tick := time.NewTicker(letterPoll)
		defer tick.Stop()
		for {
			for s.sendLetter(ctx) {
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			case <-s.letters:
			}
		}
	})
}

// sendLetter sends one letter that is due; false when there is none, or when nothing can be done now. A letter may arrive
// twice when the server is killed right after it was sent.
func (s *Service) sendLetter(ctx context.Context) bool {
	inv, err := s.Store.ClaimLetter(ctx, time.Now().Add(letterLimit+time.Minute))
	if err != nil || inv == nil {
		if err != nil && ctx.Err() == nil {
			s.log.Warn("cannot look for letters to send", "error", err)
		}
		return false
	}
	sending, cancel := context.WithTimeout(ctx, letterLimit)
	subject, text := s.letter(*inv)
	err = s.post.Mailer.Send(sending, inv.Email, subject, text)
	cancel()
	var again *time.Time
	switch {
	case err == nil:
		s.log.Info("sent an invitation", "invitation", inv.ID)
	case ctx.Err() != nil:
		return false // it is due again by itself
	case inv.MailTries >= letterTries || time.Now().After(inv.ExpiresAt):
		s.log.Error("gave up on an invitation's letter", "invitation", inv.ID, "tries", inv.MailTries, "error", err)
	default:
		at := time.Now().Add(min(time.Minute<<min(inv.MailTries-1, 10), 4*time.Hour))
		again = &at
		s.log.Warn("cannot send an invitation", "invitation", inv.ID, "again", at.UTC(), "error", err)
	}
	if err := s.Store.SetLetterDue(ctx, inv.ID, again); err != nil {
		s.log.Warn("cannot note that a letter was sent", "invitation", inv.ID, "error", err)
		return false
	}
	return true
}

func (s *Service) letter(i core.Invitation) (subject, text string) {
	name := strings.Join(strings.Fields(i.OrgName), " ")
	if i.AcceptedAt != nil {
		return "You are now a member of " + name + " on Bough",
			fmt.Sprintf("You were made a member of the organization %s (%s) with the role %s.\nYour API keys work there from now on.\n", name, i.OrgID, i.Role)
	}
	return "Invitation to " + name + " on Bough",
		fmt.Sprintf("You are invited to the organization %s with the role %s. To accept, open\n\n  %s\n\nThe link works once, until %s.\nIf you do not expect this, ignore it.\n",
			name, i.Role, InvitationLink(s.Sealer, s.post.BaseURL, i.ID), i.ExpiresAt.UTC().Format("2 January 2006 15:04 MST"))
}
