package store

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/store/db"
)

func toInvitation(r db.Invitation) core.Invitation {
	return core.Invitation{
		ID: r.ID, OrgID: r.OrgID, Email: r.Email, Role: r.Role, InvitedBy: r.InvitedBy, InvitedAt: r.InvitedAt, ExpiresAt: r.ExpiresAt,
		TokenHash: r.TokenHash, AcceptedAt: r.AcceptedAt, MailDueAt: r.MailDueAt, MailTries: int(r.MailTries),
	}
}

// Invite adds an invitation in place of one that is still open for the same address.
func (q Q) Invite(ctx context.Context, i core.Invitation) (core.Invitation, error) {
	if err := q.db.DeleteOpenInvitation(ctx, db.DeleteOpenInvitationParams{OrgID: i.OrgID, Email: i.Email}); err != nil {
		return core.Invitation{}, internal(err)
	}
	r, err := q.db.InsertInvitation(ctx, db.InsertInvitationParams{
		ID: i.ID, OrgID: i.OrgID, Email: i.Email, Role: i.Role, InvitedBy: i.InvitedBy, ExpiresAt: i.ExpiresAt, TokenHash: i.TokenHash,
		AcceptedAt: i.AcceptedAt, MailDueAt: i.MailDueAt,
	})
	return one(r, err, toInvitation, "invitation", i.ID)
}

// Invitations returns those of an organization, oldest first.
func (q Q) Invitations(ctx context.Context, orgID string) ([]core.Invitation, error) {
	r, err := q.db.ListInvitations(ctx, orgID)
	return many(r, err, toInvitation)
}

// OpenInvitations returns every invitation that can be accepted, oldest first.
func (q Q) OpenInvitations(ctx context.Context) ([]core.Invitation, error) {
	r, err := q.db.ListOpenInvitations(ctx)
	return many(r, err, toInvitation)
}

// InvitationByToken returns the open invitation whose link holds the token with that SHA-256, with the organization's name.
func (q Q) InvitationByToken(ctx context.Context, hash []byte) (core.Invitation, error) {
	r, err := q.db.GetInvitationByToken(ctx, hash)
	return one(r, err, func(r db.GetInvitationByTokenRow) core.Invitation {
		i := toInvitation(r.Invitation)
		i.OrgName = r.Name
		return i
	}, "invitation", "")
}

// LockInvitation is InvitationByToken without the name, and keeps others from accepting it until the transaction ends.
func (q Q) LockInvitation(ctx context.Context, hash []byte) (core.Invitation, error) {
	r, err := q.db.LockInvitation(ctx, hash)
	return one(r, err, toInvitation, "invitation", "")
}

// AcceptInvitation ends an invitation; its token is of no more use.
func (q Q) AcceptInvitation(ctx context.Context, id string) error {
	return internal(q.db.AcceptInvitation(ctx, id))
}

// ClaimLetter returns an invitation whose letter is due, with the organization's name, and nil when there is none. Unless
// SetLetterDue says otherwise it is due again at a later time, also when the server ends meanwhile.
func (q Q) ClaimLetter(ctx context.Context, again time.Time) (*core.Invitation, error) {
	r, err := q.db.ClaimLetter(ctx, again)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, internal(err)
	}
	return &core.Invitation{
		ID: r.ID, OrgID: r.OrgID, OrgName: r.OrgName, Email: r.Email, Role: r.Role, InvitedBy: r.InvitedBy, InvitedAt: r.InvitedAt,
		ExpiresAt: r.ExpiresAt, TokenHash: r.TokenHash, AcceptedAt: r.AcceptedAt, MailDueAt: r.MailDueAt, MailTries: int(r.MailTries),
	}, nil
}

// SetLetterDue says when an invitation's letter is sent again; nil: never.
func (q Q) SetLetterDue(ctx context.Context, id string, due *time.Time) error {
	return internal(q.db.SetLetterDue(ctx, db.SetLetterDueParams{ID: id, Due: due}))
}
