package store_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/pgtest"
	"github.com/boughdb/bough/internal/store"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Run(m)) }

// open gives a store on a fresh control database.
func open(t *testing.T) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), url(pgtest.NewCluster(t, pgtest.Options{})), 8)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func url(c *pgtest.Cluster) string {
	return "postgres:///postgres?sslmode=disable&user=cloud_admin&host=" + c.SocketDir
}

// project makes a project with an organization and a root branch.
func project(t *testing.T, s *store.Store) (core.Project, core.Branch) {
	t.Helper()
	ctx := t.Context()
	org, err := s.InsertOrganization(ctx, core.NewOrgID(), "h", "Org")
	check(t, err)
	p, err := s.InsertProject(ctx, core.Project{
		ID: core.NewProjectID(), OrgID: org.ID, Name: "p", RegionID: "local", PGVersion: 17, Provisioner: "k8s-neonvm",
		Settings: json.RawMessage(`{}`), StorePasswords: true,
	})
	check(t, err)
	return p, branch(t, s, p, "main", "")
}

func branch(t *testing.T, s *store.Store, p core.Project, name, parent string) core.Branch {
	t.Helper()
	id := core.NewBranchID()
	b, err := s.InsertBranch(t.Context(), core.Branch{
		ID: id, ProjectID: p.ID, ParentID: parent, Name: name, State: core.BranchReady, InitSource: "parent-data", VolumeID: id,
		Default: parent == "",
	})
	check(t, err)
	return b
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestOpenTwiceAtOnce(t *testing.T) {
	c := pgtest.NewCluster(t, pgtest.Options{})
	errs := make(chan error, 4)
	for range cap(errs) {
		go func() {
			s, err := store.Open(t.Context(), url(c), 4)
			if err == nil {
				s.Close()
			}
			errs <- err
		}()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestBranchPages(t *testing.T) {
	s := open(t)
	p, root := project(t, s)
	want := []string{"main"}
	for i := range 23 {
		name := fmt.Sprintf("b%02d", i)
		if i%2 == 0 {
			name = strings.ToUpper(name)
		}
		branch(t, s, p, name, root.ID)
		want = append(want, name)
	}
	for _, by := range []string{"name", "created_at", "updated_at"} {
		for _, desc := range []bool{false, true} {
			var got []string
			f := store.BranchFilter{ProjectID: p.ID, SortBy: by, Desc: desc, Limit: 5}
			for {
				page, next, err := s.ListBranches(t.Context(), f)
				check(t, err)
				for _, b := range page {
					got = append(got, b.Name)
				}
				if next == "" {
					break
				}
				f.Cursor = next
			}
			if len(got) != len(want) {
				t.Fatalf("by %s: %d branches over all pages, want %d: %v", by, len(got), len(want), got)
			}
			sorted := slices.Clone(got)
			slices.Sort(sorted)
			if len(slices.Compact(sorted)) != len(want) {
				t.Errorf("by %s: a branch is on two pages: %v", by, got)
			}
			if by == "created_at" && !desc && !slices.Equal(got, want) {
				t.Errorf("by created_at: %v", got)
			}
		}
	}
	page, _, err := s.ListBranches(t.Context(), store.BranchFilter{ProjectID: p.ID, SortBy: "name", Search: "B0", Limit: 100})
	check(t, err)
	if len(page) != 10 {
		t.Errorf("search finds %d branches, want 10", len(page))
	}
	for _, cursor := range []string{"x", "eyJ", "e30", "eyJuIjoiXHUwMDAwIiwiaSI6IngifQ"} {
		if _, _, err := s.ListBranches(t.Context(), store.BranchFilter{ProjectID: p.ID, SortBy: "name", Limit: 5, Cursor: cursor}); !core.IsKind(err, core.KindInvalid) {
			t.Errorf("cursor %q: %v", cursor, err)
		}
	}
}

func TestNamesAreFreedByDeletion(t *testing.T) {
	s := open(t)
	p, root := project(t, s)
	b := branch(t, s, p, "twice", root.ID)
	_, err := s.InsertBranch(t.Context(), core.Branch{ID: core.NewBranchID(), ProjectID: p.ID, Name: "twice", State: core.BranchInit, InitSource: "parent-data", VolumeID: "v"})
	if e, ok := err.(*core.Error); !ok || e.Kind != core.KindConflict || e.Code != "BRANCH_ALREADY_EXISTS" {
		t.Fatalf("a taken name gives %v", err)
	}
	_, err = s.MarkBranchDeleting(t.Context(), b.ID)
	check(t, err)
	branch(t, s, p, "twice", root.ID)
}

func TestReplaceCatalog(t *testing.T) {
	s := open(t)
	ctx := t.Context()
	_, b := project(t, s)
	kept, err := s.InsertRole(ctx, core.Role{BranchID: b.ID, Name: "kept", Verifier: "v1", Sealed: []byte("secret")})
	check(t, err)
	_, err = s.InsertRole(ctx, core.Role{BranchID: b.ID, Name: "changed", Verifier: "v1", Sealed: []byte("secret")})
	check(t, err)
	_, err = s.InsertRole(ctx, core.Role{BranchID: b.ID, Name: "gone", Verifier: "v1"})
	check(t, err)
	old, err := s.InsertDatabase(ctx, b.ID, "db", "kept")
	check(t, err)
	_, err = s.InsertDatabase(ctx, b.ID, "gone", "kept")
	check(t, err)

	check(t, s.ReplaceCatalog(ctx, b.ID,
		[]core.Role{{Name: "kept", Verifier: "v1"}, {Name: "changed", Verifier: "v2"}, {Name: "new", NoLogin: true}},
		[]core.Database{{Name: "db", OwnerName: "kept"}, {Name: "new", OwnerName: "kept"}}))

	roles, err := s.Roles(ctx, b.ID)
	check(t, err)
	byName := map[string]core.Role{}
	for _, r := range roles {
		byName[r.Name] = r
	}
	if len(byName) != 3 || !byName["new"].NoLogin {
		t.Errorf("roles: %+v", roles)
	}
	if r := byName["kept"]; string(r.Sealed) != "secret" || !r.UpdatedAt.Equal(kept.UpdatedAt) {
		t.Errorf("an unchanged role was changed: %+v", r)
	}
	if r := byName["changed"]; r.Sealed != nil || r.Verifier != "v2" {
		t.Errorf("the stored password of a role that changed it in SQL is still there: %+v", r)
	}
	databases, err := s.Databases(ctx, b.ID)
	check(t, err)
	if len(databases) != 2 || databases[0].ID != old.ID || databases[1].Name != "new" {
		t.Errorf("databases: %+v", databases)
	}
}

func TestOperationsOfABranchAreClaimedInOrder(t *testing.T) {
	s := open(t)
	ctx := t.Context()
	p, b := project(t, s)
	insert := func(action core.OperationAction) core.Operation {
		op, err := s.InsertOperation(ctx, core.Operation{ID: core.NewUUID(), ProjectID: p.ID, BranchID: b.ID, Action: action})
		check(t, err)
		return op
	}
	first, second := insert(core.ActionCreateTimeline), insert(core.ActionStartCompute)
	if first.Status != core.OpRunning || second.Status != core.OpScheduling {
		t.Fatalf("statuses as committed: %s, %s", first.Status, second.Status)
	}
	_, err := s.HoldProject(ctx, p.ID, 1)
	check(t, err)
	got, ok, err := s.ClaimHead(ctx, b.ID, 1)
	check(t, err)
	if !ok || got.ID != first.ID {
		t.Fatalf("claimed %+v", got)
	}
	if _, ok, err := s.ClaimHead(ctx, b.ID, 2); ok || err != nil {
		t.Fatalf("two instances claimed one operation (%v)", err)
	}
	check(t, s.EndOperation(ctx, first.ID, core.OpFinished, ""))
	if got, ok, err := s.ClaimHead(ctx, b.ID, 1); err != nil || !ok || got.ID != second.ID {
		t.Fatalf("claimed %+v, %v", got, err)
	}
}

func TestDeadClaimsAreReleased(t *testing.T) {
	s := open(t)
	ctx := t.Context()
	p, b := project(t, s)
	hold := func(server, want int64) {
		t.Helper()
		h, err := s.HoldProject(ctx, p.ID, server)
		check(t, err)
		if h != (store.Holder{Server: want, Ready: true}) {
			t.Fatalf("%d holds the project, want %d", h.Server, want)
		}
	}
	op, err := s.InsertOperation(ctx, core.Operation{ID: core.NewUUID(), ProjectID: p.ID, BranchID: b.ID, Action: core.ActionStartCompute})
	check(t, err)
	if _, ok, err := s.ClaimHead(ctx, b.ID, 7); ok || err != nil {
		t.Fatalf("a server claimed what is nobody's, %v", err)
	}
	hold(7, 7)
	_, _, err = s.ClaimHead(ctx, b.ID, 7)
	check(t, err)
	hold(8, 7)
	check(t, s.ReleaseDeadClaims(ctx, func(server int64) bool { return server == 7 }))
	if head, ok, err := s.Head(ctx, b.ID); !ok || err != nil || !head.Claimed || head.Holder.Server != 7 {
		t.Fatalf("the claim of a server that lives was released: %+v, %v", head, err)
	}
	check(t, s.ReleaseDeadClaims(ctx, func(int64) bool { return false }))
	if _, ok, err := s.ClaimHead(ctx, b.ID, 8); ok || err != nil {
		t.Fatalf("a server claimed what another one holds, %v", err)
	}
	check(t, s.InheritProjects(ctx, 7, 8))
	if _, ok, err := s.ClaimHead(ctx, b.ID, 8); ok || err != nil {
		t.Fatalf("a server works on what it has not taken over, %v", err)
	}
	ids, err := s.UnreadyProjects(ctx, 8)
	check(t, err)
	if !slices.Equal(ids, []string{p.ID}) {
		t.Fatalf("to be taken over: %v", ids)
	}
	check(t, s.ReadyProject(ctx, p.ID, 8))
	got, ok, err := s.ClaimHead(ctx, b.ID, 8)
	check(t, err)
	if !ok || got.ID != op.ID || got.FailuresCount != 1 {
		t.Errorf("%+v", got)
	}
	check(t, s.EndOperation(ctx, op.ID, core.OpFinished, ""))
	check(t, s.InheritProjects(ctx, 8, 9))
	hold(10, 10) // nothing was to be done there
}

func TestKeysAreFoundUntilRevoked(t *testing.T) {
	s := open(t)
	ctx := t.Context()
	u, err := s.InsertUser(ctx, core.NewUUID(), "a@b.c", "Ada")
	check(t, err)
	k, err := s.InsertKey(ctx, core.APIKey{Name: "k", Hash: []byte("h"), UserID: u.ID})
	check(t, err)
	found, err := s.KeyByHash(ctx, []byte("h"))
	check(t, err)
	if found.ID != k.ID || found.UserName != "Ada" {
		t.Errorf("%+v", found)
	}
	if _, err := s.RevokePersonalKey(ctx, k.ID, core.NewUUID()); !core.IsKind(err, core.KindNotFound) {
		t.Errorf("somebody else revoked the key: %v", err)
	}
	_, err = s.RevokePersonalKey(ctx, k.ID, u.ID)
	check(t, err)
	if _, err := s.KeyByHash(ctx, []byte("h")); !core.IsKind(err, core.KindNotFound) {
		t.Errorf("a revoked key is found: %v", err)
	}
}

func TestTheLastBranchTakesItsProjectAlong(t *testing.T) {
	s := open(t)
	p, root := project(t, s)
	child := branch(t, s, p, "child", root.ID)
	check(t, s.MarkProjectDeleting(t.Context(), p.ID))
	errs := make(chan error, 2)
	for _, id := range []string{root.ID, child.ID} { // at once, the parent among them
		go func() {
			errs <- s.Tx(t.Context(), func(q store.Q) error {
				if err := q.AwaitProject(t.Context(), p.ID); err != nil {
					return err
				}
				if err := q.DeleteBranch(t.Context(), id); err != nil {
					return err
				}
				return q.DeleteProjectIfEmpty(t.Context(), p.ID)
			})
		}()
	}
	check(t, <-errs)
	check(t, <-errs)
	var n int
	check(t, s.Pool().QueryRow(context.WithoutCancel(t.Context()), "SELECT count(*) FROM projects").Scan(&n))
	if n != 0 {
		t.Error("the project stays")
	}
}
