% rebase('base', title='Log in · forge')
<h1>Log in</h1>
% if get('wrong'):
<p class="trouble" role="alert">{{wrong}}</p>
% end
<form method="post" action="/login" class="login">
<label>Merge password <input type="password" name="password" autocomplete="current-password" required autofocus></label>
<button class="go">Log in</button>
</form>
