package cli

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/sdk"
)

var idForm = regexp.MustCompile(`^[a-z0-9-]{1,60}$`)

// project finds the project that --project-id or BOUGH_PROJECT_ID names, or the only one there is.
func (a *app) project(ctx context.Context) (*sdk.Client, string, error) {
	c, err := a.client()
	if err != nil {
		return nil, "", err
	}
	want := a.projectID
	if want == "" {
		want = a.Getenv("BOUGH_PROJECT_ID")
	}
	id, err := a.findProject(ctx, c, want)
	return c, id, err
}

// findProject resolves an id or a name that only one project has; an empty want is the only project.
func (a *app) findProject(ctx context.Context, c *sdk.Client, want string) (string, error) {
	if want != "" && idForm.MatchString(want) {
		p, err := c.Project(ctx, want)
		if err == nil {
			return p.ID, nil
		}
		if !sdk.IsNotFound(err) {
			return "", err
		}
	}
	all, err := sdk.All(c.Projects(ctx, sdk.ProjectFilter{}))
	if err != nil {
		return "", err
	}
	var shown, names, hits []string
	for _, p := range all {
		label := p.ID
		if p.Name != p.ID {
			label += " (" + printable(p.Name) + ")"
		}
		shown = append(shown, label)
		names = append(names, p.ID, p.Name)
		if want == "" || p.Name == want || p.ID == want {
			hits = append(hits, p.ID)
		}
	}
	switch {
	case len(hits) == 1:
		return hits[0], nil
	case len(all) == 0 && want == "":
		return "", errors.New("there is no project yet; make one with: bough projects create")
	case want == "":
		return "", usagef("there are %d projects, name one with --project-id or BOUGH_PROJECT_ID: %s", len(all), list(shown))
	case len(hits) > 1:
		return "", usagef("%d projects are named %q, use the id of one: %s", len(hits), want, list(hits))
	}
	return "", fmt.Errorf("there is no project %q%s", want, didYouMean(want, names, "; see bough projects list"))
}

// branch finds a branch by id or name; an empty want is the default branch.
func (a *app) branch(ctx context.Context, c *sdk.Client, projectID, want string) (*sdk.Branch, error) {
	all, err := sdk.All(c.Branches(ctx, projectID, sdk.BranchFilter{}))
	if err != nil {
		return nil, err
	}
	var names []string
	for i, b := range all {
		if b.ID == want || (want == "" && b.Default) {
			return &all[i], nil
		}
		names = append(names, b.Name)
	}
	for i, b := range all {
		if b.Name == want {
			return &all[i], nil
		}
	}
	if want == "" {
		return nil, fmt.Errorf("project %s has no default branch", projectID)
	}
	return nil, fmt.Errorf("project %s has no branch %q%s", projectID, want, didYouMean(want, names, ": "+has(names)))
}

// endpoint finds an endpoint by id or name, or as the read_write one of a branch.
func (a *app) endpoint(ctx context.Context, c *sdk.Client, projectID, want string) (*sdk.Endpoint, error) {
	all, err := c.Endpoints(ctx, projectID)
	if err != nil {
		return nil, err
	}
	var ids []string
	for i, e := range all {
		if e.ID == want {
			return &all[i], nil
		}
		ids = append(ids, e.ID)
	}
	var named []*sdk.Endpoint
	for i, e := range all {
		if want != "" && deref(e.Name) == want {
			named = append(named, &all[i])
		}
	}
	if len(named) == 1 {
		return named[0], nil
	}
	if len(named) > 1 {
		return nil, usagef("%d endpoints are named %q, use the id of one", len(named), want)
	}
	branches, err := sdk.All(c.Branches(ctx, projectID, sdk.BranchFilter{}))
	if err != nil {
		return nil, err
	}
	names := slices.Clone(ids)
	for _, b := range branches {
		names = append(names, b.Name)
		if b.ID != want && b.Name != want {
			continue
		}
		for i, e := range all {
			if e.BranchID == b.ID && e.Type == api.ReadWrite {
				return &all[i], nil
			}
		}
		return nil, fmt.Errorf("branch %q has no compute; make one with: bough endpoints create --branch %s", b.Name, b.ID)
	}
	return nil, fmt.Errorf("project %s has no endpoint %q%s", projectID, want, didYouMean(want, names, ": "+has(ids)))
}

// on finds the project and the branch that a verb about roles or databases works on.
func (a *app) on(ctx context.Context, branch string) (*sdk.Client, *sdk.Branch, error) {
	c, projectID, err := a.project(ctx)
	if err != nil {
		return nil, nil, err
	}
	b, err := a.branch(ctx, c, projectID, branch)
	return c, b, err
}

func has(names []string) string {
	if len(names) == 0 {
		return "it has none"
	}
	return "it has " + list(names)
}

// list is the first names, so that a message stays one line.
func list(names []string) string {
	const most = 8
	if len(names) > most {
		return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", len(names)-most)
	}
	return strings.Join(names, ", ")
}

// didYouMean suggests the known names that are close to what was typed; otherwise it returns instead.
func didYouMean(typed string, known []string, instead string) string {
	best, near := 3, []string(nil)
	for _, name := range known {
		d := distance(strings.ToLower(typed), strings.ToLower(name))
		if strings.HasPrefix(strings.ToLower(name), strings.ToLower(typed)) && len(typed) >= 3 {
			d = min(d, 1)
		}
		// Half of a short word changed is another word.
		if d > best || d*2 > len(typed) || slices.Contains(near, name) {
			continue
		}
		if d < best {
			best, near = d, nil
		}
		near = append(near, name)
	}
	if len(near) == 0 {
		return instead
	}
	for i := range near {
		near[i] = printable(near[i])
	}
	return "; did you mean " + strings.Join(near[:min(3, len(near))], " or ") + "?"
}

// distance is the number of single-character edits between two words, a swap of neighbours being one.
func distance(a, b string) int {
	x, y := []rune(a), []rune(b)
	rows := make([][]int, len(x)+1)
	for i := range rows {
		rows[i] = make([]int, len(y)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(x); i++ {
		for j := 1; j <= len(y); j++ {
			cost := 1
			if x[i-1] == y[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && x[i-1] == y[j-2] && x[i-2] == y[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(x)][len(y)]
}
