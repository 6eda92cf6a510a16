package store

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/store/db"
)

// ClaimMeta stores a value under a key unless one is there, and returns the one that is there then.
func (q Q) ClaimMeta(ctx context.Context, key, value string) (string, error) {
	if err := q.db.SetMetaOnce(ctx, db.SetMetaOnceParams{Key: key, Value: value}); err != nil {
		return "", internal(err)
	}
	v, err := q.db.GetMeta(ctx, key)
	return v, internal(err)
}

// Meta returns the value under a key, "" when there is none.
func (q Q) Meta(ctx context.Context, key string) (string, error) {
	v, err := q.db.GetMeta(ctx, key)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", nil
	}
	return v, internal(err)
}

func toUser(r db.User) core.User {
	return core.User{ID: r.ID, Email: r.Email, Name: r.Name, LastName: r.LastName, CreatedAt: r.CreatedAt}
}

// InsertUser adds a user; KindConflict when the e-mail address is taken.
func (q Q) InsertUser(ctx context.Context, id, email, name string) (core.User, error) {
	r, err := q.db.InsertUser(ctx, db.InsertUserParams{ID: id, Email: email, Name: name})
	if taken(err, "users_email_key") {
		return core.User{}, core.Errorf(core.KindConflict, "USER_ALREADY_EXISTS", "a user with the e-mail address %q exists already", email)
	}
	return one(r, err, toUser, "user", id)
}

// User returns one user.
func (q Q) User(ctx context.Context, id string) (core.User, error) {
	r, err := q.db.GetUser(ctx, id)
	return one(r, err, toUser, "user", id)
}

// UserByEmail returns one user.
func (q Q) UserByEmail(ctx context.Context, email string) (core.User, error) {
	r, err := q.db.GetUserByEmail(ctx, email)
	return one(r, err, toUser, "user", email)
}

// Users returns every user, oldest first.
func (q Q) Users(ctx context.Context) ([]core.User, error) {
	r, err := q.db.ListUsers(ctx)
	return many(r, err, toUser)
}

func toOrganization(r db.Organization) core.Organization {
	return core.Organization{ID: r.ID, Handle: r.Handle, Name: r.Name, CreatedAt: r.CreatedAt, UpdatedAt: r.UpdatedAt}
}

// InsertOrganization adds an organization.
func (q Q) InsertOrganization(ctx context.Context, id, handle, name string) (core.Organization, error) {
	r, err := q.db.InsertOrganization(ctx, db.InsertOrganizationParams{ID: id, Handle: handle, Name: name})
	return one(r, err, toOrganization, "organization", id)
}

// Organization returns one organization.
func (q Q) Organization(ctx context.Context, id string) (core.Organization, error) {
	r, err := q.db.GetOrganization(ctx, id)
	return one(r, err, toOrganization, "organization", id)
}

// Organizations returns every organization, oldest first.
func (q Q) Organizations(ctx context.Context) ([]core.Organization, error) {
	r, err := q.db.ListOrganizations(ctx)
	return many(r, err, toOrganization)
}

// UserOrganizations returns the organizations of a user, in the order of joining.
func (q Q) UserOrganizations(ctx context.Context, userID string) ([]core.Organization, error) {
	r, err := q.db.ListUserOrganizations(ctx, userID)
	return many(r, err, toOrganization)
}

// SetMembership makes a user a member of an organization, role admin or member.
func (q Q) SetMembership(ctx context.Context, orgID, userID, role string) error {
	return internal(q.db.UpsertMembership(ctx, db.UpsertMembershipParams{OrgID: orgID, UserID: userID, Role: role}))
}

func toKey(r db.ApiKey) core.APIKey {
	return core.APIKey{
		ID: r.ID, Name: r.Name, Hash: r.Hash, UserID: r.UserID, OrgID: orEmpty(r.OrgID), ProjectID: orEmpty(r.ProjectID),
		CreatedAt: r.CreatedAt, LastUsedAt: r.LastUsedAt, LastUsedFromAddr: r.LastUsedFromAddr, Revoked: r.RevokedAt != nil,
	}
}

// InsertKey adds a key: name, hash, owner and scope are read.
func (q Q) InsertKey(ctx context.Context, k core.APIKey) (core.APIKey, error) {
	r, err := q.db.InsertKey(ctx, db.InsertKeyParams{
		Name: k.Name, Hash: k.Hash, UserID: k.UserID, OrgID: nilIfEmpty(k.OrgID), ProjectID: nilIfEmpty(k.ProjectID),
	})
	return one(r, err, toKey, "API key", k.Name)
}

// KeyByHash returns the key with that SHA-256 unless it is revoked.
func (q Q) KeyByHash(ctx context.Context, hash []byte) (core.APIKey, error) {
	r, err := q.db.GetKeyByHash(ctx, hash)
	return one(r, err, func(r db.GetKeyByHashRow) core.APIKey {
		k := toKey(r.ApiKey)
		k.UserName, k.UserEmail = r.UserName, r.UserEmail
		return k
	}, "API key", "")
}

// TouchKey records a use.
func (q Q) TouchKey(ctx context.Context, id int64, addr string) error {
	return internal(q.db.TouchKey(ctx, db.TouchKeyParams{ID: id, LastUsedFromAddr: addr}))
}

// PersonalKeys returns a user's keys, oldest first.
func (q Q) PersonalKeys(ctx context.Context, userID string) ([]core.APIKey, error) {
	r, err := q.db.ListPersonalKeys(ctx, userID)
	return many(r, err, toKey)
}

// RevokePersonalKey revokes a key that the user owns.
func (q Q) RevokePersonalKey(ctx context.Context, id int64, userID string) (core.APIKey, error) {
	r, err := q.db.RevokePersonalKey(ctx, db.RevokePersonalKeyParams{ID: id, UserID: userID})
	return one(r, err, toKey, "API key", "")
}

// Keys returns every key that is not revoked, oldest first.
func (q Q) Keys(ctx context.Context) ([]core.APIKey, error) {
	r, err := q.db.ListKeys(ctx)
	return many(r, err, func(r db.ListKeysRow) core.APIKey {
		k := toKey(r.ApiKey)
		k.UserName = r.UserName
		return k
	})
}

// RevokeKey revokes any key.
func (q Q) RevokeKey(ctx context.Context, id int64) (core.APIKey, error) {
	r, err := q.db.RevokeKey(ctx, id)
	return one(r, err, toKey, "API key", "")
}
